// who.go
package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/gomodule/redigo/redis"
)

func isOnline(conn redis.Conn, user string) (bool, error) {
	status, err := redis.String(conn.Do("HGET", "presence:"+user, "status"))
	if err == redis.ErrNil { // nothing is known of the user
		err = nil
	}
	return status == "online", err
}

func whoIsOnline(conn redis.Conn, users []string) (online []string, err error) {
	for _, user := range users {
		if err := conn.Send("HGET", "presence:"+user, "status"); err != nil {
			return nil, err
		}
	}
	statuses, err := redis.Strings(conn.Do("")) // all answers at once
	for i, status := range statuses {
		if status == "online" {
			online = append(online, users[i])
		}
	}
	return online, err
}

func lastSeen(conn redis.Conn, user string) (string, error) {
	var hash struct {
		Status    string `redis:"status"`
		ChangedAt int64  `redis:"changed_at"`
	}
	values, err := redis.Values(conn.Do("HGETALL", "presence:"+user))
	if err == nil {
		err = redis.ScanStruct(values, &hash)
	}
	switch hash.Status {
	case "online":
		return "now", err
	case "":
		return "never", err
	}
	return time.UnixMilli(hash.ChangedAt).UTC().Format(time.RFC3339), err
}

func main() {
	conn, err := redis.Dial("tcp", "127.0.0.1:6379")
	if err != nil {
		log.Fatal(err)
	}
	users := os.Args[1:]
	first, err := isOnline(conn, users[0])
	if err != nil {
		log.Fatal(err)
	}
	online, err := whoIsOnline(conn, users)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(first, online)
	for _, user := range users {
		seen, err := lastSeen(conn, user)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(user, seen)
	}
}
