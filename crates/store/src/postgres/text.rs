//! Statements that only this backend has: many rows in one, and the head row's guard.

pub(super) const HEAD: &str =
    "SELECT incarnation, number, fence, log_size, writes, needs FROM head WHERE singleton = 1";
/// The head row and the hash of the log's last leaf, as they are at one moment.
pub(super) const TIP: &str = "SELECT h.incarnation, h.number, h.fence, h.log_size, \
     (SELECT l.hash FROM log AS l WHERE l.log_index = h.log_size - 1), h.needs \
     FROM head AS h WHERE h.singleton = 1";
/// The same, with the hash of one more leaf.
pub(super) const TIP_AND_LEAF: &str = "SELECT h.incarnation, h.number, h.fence, h.log_size, \
     (SELECT l.hash FROM log AS l WHERE l.log_index = h.log_size - 1), h.needs, \
     (SELECT l.hash FROM log AS l WHERE l.log_index = $1::BIGINT) \
     FROM head AS h WHERE h.singleton = 1";
/// Waits until no other writer has the head row.
pub(super) const HEAD_LOCKED: &str = "SELECT incarnation, number, fence, log_size, writes, needs \
     FROM head WHERE singleton = 1 FOR UPDATE";
/// Breaks the row's CHECK when another has written since it was read, which takes the whole transaction back, also
/// where all of it was sent at once.
pub(super) const MOVE_HEAD: &str = "UPDATE head SET incarnation = $1, number = $2, fence = $3, \
     log_size = $4, writes = CASE WHEN incarnation = $5 AND writes = $6 THEN writes + 1 ELSE -1 END \
     WHERE singleton = 1";
/// For what needs no guard, and yet must not come between another's reading and writing.
pub(super) const COUNT_WRITE: &str = "UPDATE head SET writes = writes + 1 WHERE singleton = 1";

pub(super) const KNOWN_RECORDS: &str = "SELECT r.kind, r.name FROM records AS r \
     JOIN UNNEST($1::TEXT[], $2::TEXT[]) AS asked (kind, name) \
     ON r.kind = asked.kind AND r.name = asked.name";
pub(super) const KNOWN_TOKENS: &str =
    "SELECT hash, expires, labels, spent FROM tokens WHERE hash = ANY($1::BYTEA[])";
pub(super) const KNOWN_PAPERS: &str =
    "SELECT name, value FROM papers WHERE name = ANY($1::BYTEA[])";
pub(super) const KNOWN_NODES: &str = "SELECT id, spiffe_id, key_spki, generation, labels, host, \
     attested_at, seen_at, attested_by FROM nodes WHERE id = ANY($1::BYTEA[]) OR key_spki = ANY($2::BYTEA[])";
pub(super) const KNOWN_REVOKED: &str =
    "SELECT key_id FROM revoked_keys WHERE key_id = ANY($1::BYTEA[])";
pub(super) const KNOWN_SERIALS: &str = "SELECT serial FROM issued WHERE serial = ANY($1::BYTEA[])";

pub(super) const PUT_RECORDS: &str = "INSERT INTO records (kind, name, value) \
     SELECT * FROM UNNEST($1::TEXT[], $2::TEXT[], $3::BYTEA[]) \
     ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value";
pub(super) const REMOVE_RECORDS: &str = "DELETE FROM records AS r \
     USING UNNEST($1::TEXT[], $2::TEXT[]) AS gone (kind, name) \
     WHERE r.kind = gone.kind AND r.name = gone.name";
pub(super) const ADD_COMMITS: &str =
    "INSERT INTO commits (number) SELECT * FROM UNNEST($1::BIGINT[])";
pub(super) const ADD_CHANGES: &str = "INSERT INTO changes (number, position, kind, name, value) \
     SELECT * FROM UNNEST($1::BIGINT[], $2::BIGINT[], $3::TEXT[], $4::TEXT[], $5::BYTEA[])";
pub(super) const ADD_LEAVES: &str = "INSERT INTO log (log_index, leaf, hash, details, salt) \
     SELECT * FROM UNNEST($1::BIGINT[], $2::BYTEA[], $3::BYTEA[], $4::BYTEA[], $5::BYTEA[])";
pub(super) const ADD_TILE_HASHES: &str = "INSERT INTO tile_hashes (incarnation, level, position, hash) \
     SELECT * FROM UNNEST($1::BIGINT[], $2::BIGINT[], $3::BIGINT[], $4::BYTEA[]) \
     ON CONFLICT DO NOTHING";
pub(super) const ADD_ISSUED: &str = "INSERT INTO issued (serial, tbs, spiffe_id, key_id, issuer, \
     node, not_before, not_after, incarnation, number, log_index) \
     SELECT * FROM UNNEST($1::BYTEA[], $2::BYTEA[], $3::TEXT[], $4::BYTEA[], $5::BYTEA[], \
     $6::BYTEA[], $7::BIGINT[], $8::BIGINT[], $9::BIGINT[], $10::BIGINT[], $11::BIGINT[])";
pub(super) const PUT_SECRETS: &str = "INSERT INTO secrets (name, sealed) \
     SELECT * FROM UNNEST($1::TEXT[], $2::BYTEA[]) \
     ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed";
pub(super) const PUT_TOKENS: &str = "INSERT INTO tokens (hash, expires, labels, spent) \
     SELECT * FROM UNNEST($1::BYTEA[], $2::BIGINT[], $3::TEXT[], $4::BIGINT[]) \
     ON CONFLICT (hash) DO UPDATE SET spent = excluded.spent";
pub(super) const REMOVE_NODES: &str = "DELETE FROM nodes WHERE id = ANY($1::BYTEA[])";
pub(super) const ADD_NODES: &str = "INSERT INTO nodes (id, spiffe_id, key_spki, generation, \
     labels, host, attested_at, seen_at, attested_by) \
     SELECT * FROM UNNEST($1::BYTEA[], $2::TEXT[], $3::BYTEA[], $4::BIGINT[], $5::TEXT[], \
     $6::TEXT[], $7::BIGINT[], $8::BIGINT[], $9::TEXT[])";
pub(super) const TOUCH_NODES: &str = "UPDATE nodes AS n SET seen_at = seen.at \
     FROM UNNEST($1::BYTEA[], $2::BIGINT[]) AS seen (id, at) WHERE n.id = seen.id";

pub(super) const TAKE_LEASE: &str = "INSERT INTO leases (name, holder, ends) VALUES ($1, $2, $3) \
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, ends = excluded.ends \
     WHERE leases.holder = excluded.holder OR (leases.holder = $4 AND leases.ends = $5) RETURNING name";
pub(super) const PUT_REPORT: &str = "INSERT INTO reports (replica, version, body) \
     VALUES ($1, $2, $3) ON CONFLICT (replica) \
     DO UPDATE SET version = excluded.version, body = excluded.body \
     WHERE reports.version < excluded.version RETURNING replica";
pub(super) const TRIM_ISSUED: &str = "WITH gone AS (DELETE FROM issued WHERE serial IN \
     (SELECT serial FROM issued WHERE serial < $1 AND not_after < $2 ORDER BY serial LIMIT $3) \
     RETURNING serial) SELECT COUNT(*) FROM gone";
pub(super) const TRIM_TOKENS: &str = "WITH gone AS (DELETE FROM tokens WHERE hash IN \
     (SELECT hash FROM tokens WHERE expires < $1 ORDER BY hash LIMIT $2) \
     RETURNING hash) SELECT COUNT(*) FROM gone";

/// Which server this is: its family, its timeline and its start, which everybody may read. Not the last checkpoint's timeline,
/// which is still the old one for a while after a promotion.
pub(super) const SERVER: &str = "SELECT s.system_identifier, \
     CAST(CAST('x' || SUBSTRING(pg_walfile_name(pg_current_wal_lsn()) FOR 8) AS BIT(32)) AS BIGINT), \
     CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT) \
     FROM pg_control_system() AS s";

/// What the database promises of a commit.
pub(super) const PROMISES: &str = "SELECT current_setting('synchronous_standby_names'), \
     current_setting('synchronous_commit'), current_setting('fsync'), \
     current_setting('full_page_writes')";
