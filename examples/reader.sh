# reader.sh
redis-cli ACL SETUSER reader on '>secret' '%R~presence:*' '%R~presence-changes' '%R~presence-stats' '%R~presence-leases' +@read +@connection
