# users.sh
redis-cli ACL SETUSER presence-queue on '>secret' '~rq:*' '~presence-*' +@read +@write +@transaction +@connection -@dangerous +info
redis-cli ACL SETUSER presence-worker on '>secret' '~presence:*' '~presence-*' +@read +@write +@transaction +@connection -@dangerous +info +fcall
redis-cli ACL SETUSER presence-cluster on '>secret' '~presence:*' '~presence-*' +@read +@write +@connection -@dangerous +info +fcall '+cluster|slots'
