-- presence.sql
CREATE TABLE presence (
    user_id    text PRIMARY KEY,
    status     text NOT NULL,
    changed_at bigint NOT NULL, -- Unix milliseconds
    ms         bigint NOT NULL, -- what the row tells is not older than the entry <ms>-<n> of presence-changes
    n          bigint NOT NULL
);
