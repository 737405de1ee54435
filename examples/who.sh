# who.sh
redis-cli HGET presence:alice status                                          # online, offline, or an empty line
sed 's/.*/HGET "presence:&" status/' users.txt | redis-cli | grep -c online   # how many of these are online
redis-cli HMGET presence:bob status changed_at                                # last seen, in Unix milliseconds
redis-cli HGET presence-stats users_online                                    # how many are online at all
