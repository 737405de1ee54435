-- presence.sql
CREATE TABLE presence (
    user_id    text PRIMARY KEY,
    status     text NOT NULL,
    changed_at bigint NOT NULL, -- Unix milliseconds
    ms         bigint NOT NULL, -- the row is at least as new as the entry <ms>-<n> of presence-changes
    n          bigint NOT NULL
);
