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
	change map[string]string // nil: trimmed before it was handled
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

// consume handles changes until something fails; what was not acknowledged by then comes again.
func consume() error {
	conn, err := redis.Dial("tcp", address, redis.DialConnectTimeout(2*time.Second), redis.DialReadTimeout(10*time.Second))
	if err != nil {
		return err
	}
	defer conn.Close()
	place, cursor, begun := "0", "0-0", false // "0": what this consumer already holds; then ">": what no consumer was given
	for {
		last, err := lastGiven(conn)
		if err != nil {
			return err
		}
		there, err := isThere(conn, last)
		if err != nil {
			return err
		}
		if !there && !begun {
			if err := begin(conn); err != nil {
				return err
			}
		}
		begun = !there // until the group is given its first change
		if err := forget(conn); err != nil {
			return err
		}
		claimed, err := redis.Values(conn.Do("XAUTOCLAIM", stream, group, consumer, takeOver.Milliseconds(), cursor, "COUNT", 100))
		if err != nil {
			return err
		}
		cursor, _ = redis.String(claimed[0], nil)
		batch, err := entries(claimed[1], nil)
		if err != nil {
			return err
		}
		gone, _ := redis.Values(claimed[2], nil)
		trimmed := len(gone) > 0
		if len(batch) == 0 {
			if batch, err = read(conn, place); err != nil {
				return err
			}
			if len(batch) == 0 {
				place = ">"
			}
			if there && len(batch) > 0 { // some may have been trimmed since the last check
				if there, err = isThere(conn, last); err != nil {
					return err
				}
				trimmed = trimmed || !there
			}
		}
		if err := finish(conn, batch, trimmed); err != nil {
			return err
		}
	}
}

// finish does the work, then acknowledges it.
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
	return entries(first[1], nil)
}

func entries(reply interface{}, err error) ([]entry, error) {
	values, err := redis.Values(reply, err)
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

// lastGiven is the id of the last change that the group was given, "" if there is no group.
func lastGiven(conn redis.Conn) (string, error) {
	there, err := redis.Bool(conn.Do("EXISTS", stream))
	if err != nil || !there {
		return "", err
	}
	groups, err := redis.Values(conn.Do("XINFO", "GROUPS", stream))
	if err != nil {
		return "", err
	}
	for _, each := range groups {
		var info struct {
			Name string `redis:"name"`
			Last string `redis:"last-delivered-id"`
		}
		values, err := redis.Values(each, nil)
		if err != nil {
			return "", err
		}
		if err := redis.ScanStruct(values, &info); err != nil {
			return "", err
		}
		if info.Name == group {
			return info.Last, nil
		}
	}
	return "", nil
}

// isThere is false if the group is new, or if the stream no longer has the change with this id.
func isThere(conn redis.Conn, id string) (bool, error) {
	if id == "" {
		return false, nil
	}
	found, err := redis.Values(conn.Do("XRANGE", stream, id, id))
	return len(found) > 0, err
}

// forget looks for changes that were trimmed before they were handled; if there are any, it reads all users and then
// acknowledges these changes.
func forget(conn redis.Conn) error {
	oldest, err := entries(conn.Do("XRANGE", stream, "-", "+", "COUNT", 1))
	if err != nil {
		return err
	}
	end := "+"
	if len(oldest) > 0 {
		end = "(" + oldest[0].id
	}
	for first := true; ; first = false {
		gone, err := redis.Values(conn.Do("XPENDING", stream, group, "-", end, 1000))
		if err != nil || len(gone) == 0 {
			return err
		}
		if first {
			if err := resync(); err != nil {
				return err
			}
		}
		ids := redis.Args{}.Add(stream, group)
		for _, each := range gone {
			pending, err := redis.Values(each, nil)
			if err != nil {
				return err
			}
			ids = ids.Add(pending[0])
		}
		if _, err := conn.Do("XACK", ids...); err != nil {
			return err
		}
	}
}

// begin reads all users, then starts the group at the oldest change in the stream.
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
