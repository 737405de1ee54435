// Reader shows the presence of the users named, read in one round trip, and from then on each change of theirs.
//
//	cd examples/go
//	REDIS_URL=redis://127.0.0.1:6379/0 go run ./reader alice bob
//
// A change says whose presence to read; the hash says what it is. The reader notes its place in the stream before it
// reads everybody, so that no change falls in between. If the stream no longer has the entry at that place, others may
// be gone too: it reads everybody again.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const stream = "presence-changes"

type presence struct {
	Status    string `redis:"status"`     // online or offline; empty if nothing is known
	ChangedAt int64  `redis:"changed_at"` // Unix milliseconds; of an offline user: when they were last seen
	Platforms string `redis:"platforms"`  // those online, such as "1,5": 1 iOS, 2 Android, 5 the web, ...
}

func read(ctx context.Context, rdb redis.Cmdable, users []string) ([]presence, error) {
	answers, err := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, user := range users {
			pipe.HMGet(ctx, "presence:"+user, "status", "changed_at", "platforms")
		}
		return nil
	})
	found := make([]presence, len(answers))
	for i := 0; i < len(answers) && err == nil; i++ {
		err = answers[i].(*redis.SliceCmd).Scan(&found[i])
	}
	return found, err
}

func show(user string, found presence) {
	if found.Status == "" {
		fmt.Println(user, "unknown")
		return
	}
	since := time.UnixMilli(found.ChangedAt).UTC()
	fmt.Println(user, found.Status, since.Format("2006-01-02T15:04:05.000Z"), found.Platforms)
}

func newest(ctx context.Context, rdb redis.Cmdable) (string, error) {
	entries, err := rdb.XRevRangeN(ctx, stream, "+", "-", 1).Result()
	if len(entries) == 0 {
		return "0-0", err
	}
	return entries[0].ID, err
}

// changesAfter is the new place, and which of the users changed; no place if changes were missed.
func changesAfter(ctx context.Context, rdb redis.Cmdable, place string, users []string) (string, []string, error) {
	entries, err := rdb.XRangeN(ctx, stream, place, "+", 1001).Result()
	if err == nil && place != "0-0" {
		if len(entries) == 0 || entries[0].ID != place {
			return "", nil, nil
		}
		entries = entries[1:]
	}
	if err == nil && len(entries) == 0 {
		err = rdb.XRead(ctx, &redis.XReadArgs{Streams: []string{stream, place}, Block: time.Second, Count: 1}).Err()
	}
	if err == redis.Nil { // none came within the second
		err = nil
	}
	changed := map[any]bool{}
	for _, entry := range entries {
		place = entry.ID
		changed[entry.Values["user_id"]] = true
	}
	return place, slices.DeleteFunc(slices.Clone(users), func(user string) bool { return !changed[user] }), err
}

// step shows what changed after the place, or everybody if there is none, and is the new place.
func step(ctx context.Context, rdb redis.Cmdable, place string, users []string) (next string, err error) {
	if place == "" {
		next, err = newest(ctx, rdb)
	} else {
		next, users, err = changesAfter(ctx, rdb, place, users)
	}
	if err != nil {
		return "", err
	}
	found, err := read(ctx, rdb, users)
	for i, each := range found {
		show(users[i], each)
	}
	return next, err
}

func main() {
	url := cmp.Or(os.Getenv("REDIS_URL"), "redis://127.0.0.1:6379/0")
	options, err := redis.ParseURL(url)
	if err != nil {
		log.Fatal(err)
	}
	rdb := redis.NewClient(options)
	stop, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	for place := ""; stop.Err() == nil; {
		next, err := step(context.Background(), rdb, place, os.Args[1:])
		if err != nil {
			log.Println("waiting for Redis:", err)
			time.Sleep(time.Second)
			continue
		}
		place = next
	}
}
