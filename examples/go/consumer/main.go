// Consumer does work for each change, as one of a consumer group, and misses none without noticing it.
//
//	cd examples/go
//	REDIS_URL=redis://127.0.0.1:6379/0 go run ./consumer
//
// Run as many as you like, each with another CONSUMER, which it keeps after a restart. It and Redis may be killed at
// any moment. docs/change-feed.md has the promises, and the reason for each step.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	stream   = "presence-changes"
	group    = "mailer"
	takeOver = 60 * time.Second // then another consumer does what one was given and has not acknowledged
)

func work(change redis.XMessage) error {
	fmt.Println(change.ID, change.Values["user_id"], change.Values["status"]) // your work
	return nil
}

func readEverybody() error {
	fmt.Println("read everybody") // your work: read all users
	return nil
}

type consumer struct {
	rdb    *redis.Client
	name   string
	place  string // "0": what it already holds; then ">": what no consumer was given
	cursor string // of XAUTOCLAIM
	begun  bool   // true from begin until the group is given its first change
}

// step handles the next changes. If it fails, what was not acknowledged comes again.
func (c *consumer) step(ctx context.Context) error {
	last, err := c.lastGiven(ctx)
	if err != nil {
		return err
	}
	there, err := c.isThere(ctx, last)
	if err != nil {
		return err
	}
	if !there && !c.begun {
		if err := c.begin(ctx); err != nil {
			return err
		}
	}
	c.begun = !there
	if err := c.forget(ctx); err != nil {
		return err
	}
	if err := c.claim(ctx); err != nil {
		return err
	}
	batch, err := c.read(ctx)
	if err != nil {
		return err
	}
	missed := false
	if there && len(batch) > 0 { // some may have been trimmed since the last check
		there, err := c.isThere(ctx, last)
		if err != nil {
			return err
		}
		missed = !there
	}
	return c.finish(ctx, batch, missed)
}

// lastGiven is the id of the last change that the group was given, "" if there is no group.
func (c *consumer) lastGiven(ctx context.Context) (string, error) {
	groups, err := c.rdb.XInfoGroups(ctx, stream).Result()
	if err != nil && strings.Contains(err.Error(), "no such key") {
		return "", nil
	}
	for _, each := range groups {
		if each.Name == group {
			return each.LastDeliveredID, nil
		}
	}
	return "", err
}

// isThere is false if the group is new, or if the stream no longer has the change with this id.
func (c *consumer) isThere(ctx context.Context, id string) (bool, error) {
	if id == "" {
		return false, nil
	}
	found, err := c.rdb.XRange(ctx, stream, id, id).Result()
	return len(found) > 0, err
}

// begin reads everybody, then starts the group at the oldest change in the stream.
func (c *consumer) begin(ctx context.Context) error {
	if err := readEverybody(); err != nil {
		return err
	}
	if err := c.rdb.XGroupCreateMkStream(ctx, stream, group, "0").Err(); err == nil {
		return nil
	}
	return c.rdb.XGroupSetID(ctx, stream, group, "0").Err() // BUSYGROUP: there is one
}

// forget looks for changes that were trimmed before they were handled. If there are any, it reads everybody, and only
// then acknowledges them.
func (c *consumer) forget(ctx context.Context) error {
	oldest, err := c.rdb.XRangeN(ctx, stream, "-", "+", 1).Result()
	if err != nil {
		return err
	}
	end := "+"
	if len(oldest) > 0 {
		end = "(" + oldest[0].ID
	}
	for first := true; ; first = false {
		args := redis.XPendingExtArgs{Stream: stream, Group: group, Start: "-", End: end, Count: 1000}
		gone, err := c.rdb.XPendingExt(ctx, &args).Result()
		if err != nil || len(gone) == 0 {
			return err
		}
		if first {
			if err := readEverybody(); err != nil {
				return err
			}
		}
		var ids []string
		for _, each := range gone {
			ids = append(ids, each.ID)
		}
		if err := c.rdb.XAck(ctx, stream, group, ids...).Err(); err != nil {
			return err
		}
	}
}

// claim takes over what other consumers were given and never finished.
func (c *consumer) claim(ctx context.Context) error {
	// Not by XAutoClaim of go-redis: that hides what is gone.
	words := []any{"XAUTOCLAIM", stream, group, c.name, takeOver.Milliseconds(), c.cursor, "COUNT", 100, "JUSTID"}
	reply, err := c.rdb.Do(ctx, words...).Slice()
	if err != nil {
		return err
	}
	c.cursor = reply[0].(string)
	if len(reply[1].([]any)) > 0 {
		c.place = "0"
	}
	if len(reply[2].([]any)) > 0 { // trimmed before they were handled
		return readEverybody()
	}
	return nil
}

func (c *consumer) read(ctx context.Context) ([]redis.XMessage, error) {
	args := redis.XReadGroupArgs{
		Group: group, Consumer: c.name, Streams: []string{stream, c.place}, Count: 100, Block: time.Second,
	}
	streams, err := c.rdb.XReadGroup(ctx, &args).Result()
	if err == redis.Nil || err == nil && len(streams[0].Messages) == 0 {
		c.place = ">"
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return streams[0].Messages, nil
}

// finish does the work, then acknowledges it.
func (c *consumer) finish(ctx context.Context, batch []redis.XMessage, missed bool) error {
	var ids []string
	for _, change := range batch {
		ids = append(ids, change.ID)
		if change.Values == nil { // trimmed before it was handled
			missed = true
		} else if err := work(change); err != nil {
			return err
		}
	}
	if missed {
		if err := readEverybody(); err != nil {
			return err
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return c.rdb.XAck(ctx, stream, group, ids...).Err()
}

func main() {
	options, err := redis.ParseURL(cmp.Or(os.Getenv("REDIS_URL"), "redis://127.0.0.1:6379/0"))
	if err != nil {
		log.Fatal(err)
	}
	options.MaxRetries = -1 // if it repeated a command that gives changes, the first ones would go unnoticed
	rdb, name := redis.NewClient(options), cmp.Or(os.Getenv("CONSUMER"), "mailer-1")
	one := consumer{rdb: rdb, name: name, place: "0", cursor: "0-0"}
	stop, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	for stop.Err() == nil {
		if err := one.step(context.Background()); err != nil {
			log.Println("waiting for Redis:", err)
			one.place, one.begun = "0", false
			time.Sleep(time.Second)
		}
	}
}
