// consumer.go
package main

import (
	"fmt"
	"log"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	address  = "127.0.0.1:6379"
	stream   = "presence-changes"
	group    = "mailer"
	consumer = "mailer-1"
	takeOver = 60 * time.Second
)

type entry struct {
	id     string
	change map[string]string // nil: trimmed away before it was done
}

func work(id string, change map[string]string) error {
	fmt.Println(id, change["user_id"], change["status"]) // your work
	return nil
}

func resync() error {
	fmt.Println("read everybody") // your work: read all users
	return nil
}

func main() {
	for {
		log.Println("waiting for Redis:", consume())
		time.Sleep(time.Second)
	}
}

// consume handles changes until something fails; what was not done by then comes again.
func consume() error {
	conn, err := redis.Dial("tcp", address, redis.DialConnectTimeout(2*time.Second), redis.DialReadTimeout(10*time.Second))
	if err != nil {
		return err
	}
	defer conn.Close()
	place, cursor, begun := "0", "0-0", false // first what this consumer was given before, then ">": what nobody was
	for {
		lost, err := isLost(conn)
		if err != nil {
			return err
		}
		if lost && !begun {
			if err := begin(conn); err != nil {
				return err
			}
		}
		begun = lost // until it was given the first change
		claimed, err := redis.Values(conn.Do("XAUTOCLAIM", stream, group, consumer, takeOver.Milliseconds(), cursor, "COUNT", 100))
		if err != nil {
			return err
		}
		cursor, _ = redis.String(claimed[0], nil)
		batch, err := entries(claimed[1])
		if err != nil {
			return err
		}
		gone, _ := redis.Values(claimed[2], nil)
		if len(batch) == 0 {
			if batch, err = read(conn, place); err != nil {
				return err
			}
			if len(batch) == 0 {
				place = ">"
			}
		}
		if err := finish(conn, batch, len(gone) > 0); err != nil {
			return err
		}
	}
}

// finish does the work, and only then acknowledges it.
func finish(conn redis.Conn, batch []entry, trimmed bool) error {
	done := redis.Args{}.Add(stream, group)
	for _, each := range batch {
		if each.change == nil {
			trimmed = true
		} else if err := work(each.id, each.change); err != nil {
			return err
		}
		done = done.Add(each.id)
	}
	if trimmed {
		if err := resync(); err != nil {
			return err
		}
	}
	if len(batch) == 0 {
		return nil
	}
	_, err := conn.Do("XACK", done...)
	return err
}

func read(conn redis.Conn, place string) ([]entry, error) {
	reply, err := redis.Values(conn.Do(
		"XREADGROUP", "GROUP", group, consumer, "COUNT", 100, "BLOCK", 1000, "STREAMS", stream, place))
	if err == redis.ErrNil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	first, err := redis.Values(reply[0], nil)
	if err != nil {
		return nil, err
	}
	return entries(first[1])
}

func entries(reply interface{}) ([]entry, error) {
	values, err := redis.Values(reply, nil)
	if err != nil {
		return nil, err
	}
	var found []entry
	for _, value := range values {
		pair, err := redis.Values(value, nil)
		if err != nil {
			return nil, err
		}
		id, err := redis.String(pair[0], nil)
		if err != nil {
			return nil, err
		}
		change, err := redis.StringMap(pair[1], nil)
		if err != nil && err != redis.ErrNil {
			return nil, err
		}
		found = append(found, entry{id, change})
	}
	return found, nil
}

// isLost is true where the group is new, or the last change that it was given is no longer there.
func isLost(conn redis.Conn) (bool, error) {
	there, err := redis.Bool(conn.Do("EXISTS", stream))
	if err != nil || !there {
		return true, err
	}
	groups, err := redis.Values(conn.Do("XINFO", "GROUPS", stream))
	if err != nil {
		return false, err
	}
	for _, each := range groups {
		var info struct {
			Name string `redis:"name"`
			Last string `redis:"last-delivered-id"`
		}
		values, err := redis.Values(each, nil)
		if err != nil {
			return false, err
		}
		if err := redis.ScanStruct(values, &info); err != nil {
			return false, err
		}
		if info.Name == group {
			found, err := redis.Values(conn.Do("XRANGE", stream, info.Last, info.Last))
			return len(found) == 0, err
		}
	}
	return true, nil
}

// begin reads everybody, then starts the group at the oldest change that the stream has.
func begin(conn redis.Conn) error {
	if err := resync(); err != nil {
		return err
	}
	if _, err := conn.Do("XGROUP", "CREATE", stream, group, "0", "MKSTREAM"); err == nil {
		return nil
	}
	_, err := conn.Do("XGROUP", "SETID", stream, group, "0") // BUSYGROUP: there is one
	return err
}
