//! The statements, shared by every SQL backend; only the DDL is each backend's own.
//!
//! Parameters are `$1`, `$2`, … and appear in that order for the first time: PostgreSQL numbers them by name, SQLite
//! by first appearance. Nothing here that only one of them understands.

pub(crate) const HEAD: &str =
    "SELECT incarnation, number, fence, log_size FROM head WHERE singleton = 1";
/// Guarded by what was read, so that a transaction which lost a race changes no row.
pub(crate) const MOVE_HEAD: &str = "UPDATE head SET incarnation = $1, number = $2, fence = $3, \
     log_size = $4 WHERE singleton = 1 AND incarnation = $5 AND number = $6 AND log_size = $7";

pub(crate) const RECORDS: &str = "SELECT kind, name, value FROM records ORDER BY kind, name";
pub(crate) const PUT_RECORD: &str = "INSERT INTO records (kind, name, value) VALUES ($1, $2, $3) \
     ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value";
pub(crate) const REMOVE_RECORD: &str = "DELETE FROM records WHERE kind = $1 AND name = $2";

pub(crate) const FIRST_COMMIT: &str = "SELECT number FROM commits ORDER BY number LIMIT 1";
pub(crate) const SPAN: &str = "SELECT number, (SELECT COUNT(*) FROM commits), \
     (SELECT MIN(number) FROM commits), (SELECT MAX(number) FROM commits), \
     (SELECT MIN(number) FROM changes), (SELECT MAX(number) FROM changes) \
     FROM head WHERE singleton = 1";
pub(crate) const CHANGES: &str = "SELECT number, kind, name, value FROM changes \
     WHERE $1 < number AND number <= $2 ORDER BY number, position";
/// The number of the commit with which a page of the feed is full.
pub(crate) const CHANGES_END: &str = "SELECT number FROM changes \
     WHERE $1 < number AND number <= $2 ORDER BY number, position LIMIT 1 OFFSET $3";
pub(crate) const ADD_COMMIT: &str = "INSERT INTO commits (number) VALUES ($1)";
pub(crate) const ADD_CHANGE: &str =
    "INSERT INTO changes (number, position, kind, name, value) VALUES ($1, $2, $3, $4, $5)";
pub(crate) const TRIM_COMMITS: &str = "DELETE FROM commits WHERE number <= $1";
pub(crate) const TRIM_CHANGES: &str = "DELETE FROM changes WHERE number <= $1";

pub(crate) const EVENTS: &str = "SELECT log_index, leaf, hash, details, salt FROM log \
     WHERE $1 <= log_index ORDER BY log_index LIMIT $2";
pub(crate) const LEAF_HASHES: &str =
    "SELECT log_index, hash FROM log WHERE $1 <= log_index ORDER BY log_index LIMIT $2";
pub(crate) const LAST_LEAF: &str = "SELECT log_index FROM log ORDER BY log_index DESC LIMIT 1";
pub(crate) const ADD_LEAF: &str =
    "INSERT INTO log (log_index, leaf, hash, details, salt) VALUES ($1, $2, $3, $4, $5)";

/// What an incarnation's end does: its log becomes a past one, its feed is over.
pub(crate) const KEEP_LOG: &str = "INSERT INTO past_log (incarnation, log_index, leaf, hash, details, salt) \
     SELECT CAST($1 AS BIGINT), log_index, leaf, hash, details, salt FROM log";
pub(crate) const EMPTY_LOG: &str = "DELETE FROM log";
pub(crate) const EMPTY_COMMITS: &str = "DELETE FROM commits";
pub(crate) const EMPTY_CHANGES: &str = "DELETE FROM changes";
pub(crate) const EMPTY_TOKENS: &str = "DELETE FROM tokens";
pub(crate) const PAST_EVENTS: &str = "SELECT log_index, leaf, hash, details, salt FROM past_log \
     WHERE incarnation = $1 AND $2 <= log_index ORDER BY log_index LIMIT $3";
pub(crate) const PAST_INCARNATION: &str = "SELECT incarnation FROM past_log \
     WHERE $1 < incarnation ORDER BY incarnation LIMIT 1";

pub(crate) const CHECKPOINTS: &str = "SELECT incarnation, size, note FROM checkpoints \
     WHERE incarnation = $1 ORDER BY size DESC LIMIT $2";
pub(crate) const ADD_CHECKPOINT: &str = "INSERT INTO checkpoints (incarnation, size, note) \
     VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
pub(crate) const DROP_CHECKPOINTS: &str =
    "DELETE FROM checkpoints WHERE incarnation = $1 AND size < $2";
pub(crate) const TILE_HASHES: &str = "SELECT level, position, hash FROM tile_hashes \
     WHERE incarnation = $1 AND level = $2 AND $3 <= position ORDER BY position LIMIT $4";
pub(crate) const ADD_TILE_HASH: &str = "INSERT INTO tile_hashes (incarnation, level, position, hash) \
     VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
pub(crate) const TRIM_DETAILS: &str = "UPDATE log SET details = NULL, salt = NULL \
     WHERE $1 <= log_index AND log_index < $2 AND details IS NOT NULL";
pub(crate) const TRIM_PAST_DETAILS: &str = "UPDATE past_log SET details = NULL, salt = NULL \
     WHERE incarnation = $1 AND $2 <= log_index AND log_index < $3 AND details IS NOT NULL";

pub(crate) const ISSUED: &str = "SELECT serial, tbs, spiffe_id, key_id, issuer, node, not_before, \
     not_after, incarnation, number, log_index FROM issued WHERE serial = $1";
pub(crate) const ISSUED_AFTER: &str = "SELECT serial, tbs, spiffe_id, key_id, issuer, node, \
     not_before, not_after, incarnation, number, log_index FROM issued \
     WHERE $1 < serial ORDER BY serial LIMIT $2";
pub(crate) const ADD_ISSUED: &str = "INSERT INTO issued (serial, tbs, spiffe_id, key_id, issuer, \
     node, not_before, not_after, incarnation, number, log_index) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING";
pub(crate) const TRIM_ISSUED: &str = "DELETE FROM issued WHERE serial IN \
     (SELECT serial FROM issued WHERE serial < $1 AND not_after < $2 ORDER BY serial LIMIT $3)";

pub(crate) const SECRET: &str = "SELECT sealed FROM secrets WHERE name = $1";
pub(crate) const SECRETS: &str =
    "SELECT name, sealed FROM secrets WHERE $1 < name ORDER BY name LIMIT $2";
pub(crate) const PUT_SECRET: &str = "INSERT INTO secrets (name, sealed) VALUES ($1, $2) \
     ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed";

pub(crate) const TOKEN: &str = "SELECT hash, expires, labels, spent FROM tokens WHERE hash = $1";
pub(crate) const TOKENS: &str =
    "SELECT hash, expires, labels, spent FROM tokens WHERE $1 < hash ORDER BY hash LIMIT $2";
pub(crate) const ADD_TOKEN: &str = "INSERT INTO tokens (hash, expires, labels, spent) \
     VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
/// Decides and writes in one step: of two at once, the second sees the first one's row and changes nothing.
pub(crate) const SPEND_TOKEN: &str =
    "UPDATE tokens SET spent = $1 WHERE hash = $2 AND spent IS NULL AND $1 < expires";
pub(crate) const TRIM_TOKENS: &str = "DELETE FROM tokens WHERE hash IN \
     (SELECT hash FROM tokens WHERE expires < $1 ORDER BY hash LIMIT $2)";

pub(crate) const NODE: &str = "SELECT id, spiffe_id, key_spki, generation, labels, host, \
     attested_at, seen_at, attested_by FROM nodes WHERE id = $1";
pub(crate) const NODES: &str = "SELECT id, spiffe_id, key_spki, generation, labels, host, \
     attested_at, seen_at, attested_by FROM nodes WHERE $1 < id ORDER BY id LIMIT $2";
pub(crate) const ADD_NODE: &str = "INSERT INTO nodes (id, spiffe_id, key_spki, generation, labels, \
     host, attested_at, seen_at, attested_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
     ON CONFLICT DO NOTHING";
pub(crate) const SUCCEED_KEY: &str = "UPDATE nodes SET key_spki = $1, generation = $2, \
     seen_at = CASE WHEN seen_at < $3 THEN $3 ELSE seen_at END \
     WHERE id = $4 AND generation = $5 AND NOT EXISTS \
     (SELECT 1 FROM nodes AS other WHERE other.key_spki = $1 AND other.id <> $4)";
pub(crate) const REMOVE_NODE: &str = "DELETE FROM nodes WHERE id = $1";
pub(crate) const TOUCH_NODE: &str =
    "UPDATE nodes SET seen_at = CASE WHEN seen_at < $1 THEN $1 ELSE seen_at END WHERE id = $2";

pub(crate) const POINTS: &str = "SELECT node, spiffe_id, name, registered_at FROM points \
     WHERE $1 < node OR ($1 = node AND ($2 < spiffe_id OR ($2 = spiffe_id AND $3 < name))) \
     ORDER BY node, spiffe_id, name LIMIT $4";
pub(crate) const ADD_POINT: &str = "INSERT INTO points (node, spiffe_id, name, registered_at) \
     VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
pub(crate) const REMOVE_POINT: &str =
    "DELETE FROM points WHERE node = $1 AND spiffe_id = $2 AND name = $3";
pub(crate) const REMOVE_POINTS: &str = "DELETE FROM points WHERE node = $1";

/// Two texts that differ in their bytes are two, and pages go by their bytes, whatever language a database sorts by.
pub(crate) const FLOWS: &str = "SELECT flow, first_seen, last_seen, seen FROM flows \
     WHERE $1 < flow ORDER BY flow LIMIT $2";
pub(crate) const ADD_FLOW: &str = "INSERT INTO flows (flow, first_seen, last_seen, seen) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (flow) DO UPDATE SET seen = flows.seen + excluded.seen, \
     first_seen = CASE WHEN excluded.first_seen < flows.first_seen THEN excluded.first_seen ELSE flows.first_seen END, \
     last_seen = CASE WHEN flows.last_seen < excluded.last_seen THEN excluded.last_seen ELSE flows.last_seen END";
pub(crate) const TRIM_FLOWS: &str = "DELETE FROM flows WHERE last_seen < $1";

pub(crate) const PAPERS: &str =
    "SELECT name, value FROM papers WHERE $1 < name ORDER BY name LIMIT $2";
pub(crate) const ADD_PAPER: &str =
    "INSERT INTO papers (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
pub(crate) const REMOVE_PAPER: &str = "DELETE FROM papers WHERE name = $1";
pub(crate) const TALLIES: &str = "SELECT began, what, first_seen, last_seen, seen, micros, sample \
     FROM tallies WHERE kind = $1 AND $2 <= began AND (began < $3 OR (began = $3 AND what < $4)) \
     ORDER BY began DESC, what DESC LIMIT $5";
pub(crate) const TALLIES_BEYOND: &str =
    "SELECT began FROM tallies WHERE kind = $1 ORDER BY began DESC LIMIT 1 OFFSET $2";
pub(crate) const ADD_TALLY: &str = "INSERT INTO tallies \
     (kind, began, what, first_seen, last_seen, seen, micros, sample) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (kind, began, what) DO UPDATE SET \
     seen = tallies.seen + excluded.seen, micros = tallies.micros + excluded.micros, \
     first_seen = CASE WHEN excluded.first_seen < tallies.first_seen THEN excluded.first_seen ELSE tallies.first_seen END, \
     sample = CASE WHEN excluded.last_seen < tallies.last_seen THEN tallies.sample ELSE excluded.sample END, \
     last_seen = CASE WHEN tallies.last_seen < excluded.last_seen THEN excluded.last_seen ELSE tallies.last_seen END";
pub(crate) const TRIM_TALLIES: &str = "DELETE FROM tallies WHERE kind = $1 AND (began, what) IN \
     (SELECT began, what FROM tallies WHERE kind = $1 AND began < $2 ORDER BY began, what LIMIT $3)";

pub(crate) const REVOKE_KEY: &str =
    "INSERT INTO revoked_keys (key_id, since) VALUES ($1, $2) ON CONFLICT DO NOTHING";
pub(crate) const REVOKE_KEYS_OF_SERIAL: &str = "INSERT INTO revoked_keys (key_id, since) \
     SELECT DISTINCT key_id, CAST($1 AS BIGINT) FROM issued WHERE serial = $2 ON CONFLICT DO NOTHING";
pub(crate) const REVOKE_KEYS_OF_IDENTITY: &str = "INSERT INTO revoked_keys (key_id, since) \
     SELECT DISTINCT key_id, CAST($1 AS BIGINT) FROM issued WHERE spiffe_id = $2 ON CONFLICT DO NOTHING";
pub(crate) const REVOKE_KEYS_OF_NODE: &str = "INSERT INTO revoked_keys (key_id, since) \
     SELECT DISTINCT key_id, CAST($1 AS BIGINT) FROM issued WHERE node = $2 ON CONFLICT DO NOTHING";
pub(crate) const REVOKED_KEYS: &str =
    "SELECT key_id, since FROM revoked_keys WHERE $1 < key_id ORDER BY key_id LIMIT $2";
pub(crate) const IS_KEY_REVOKED: &str = "SELECT 1 FROM revoked_keys WHERE key_id = $1";

pub(crate) const TAKE_LEASE: &str = "INSERT INTO leases (name, holder, ends) VALUES ($1, $2, $3) \
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, ends = excluded.ends \
     WHERE leases.holder = excluded.holder OR (leases.holder = $4 AND leases.ends = $5)";
pub(crate) const LEASE: &str = "SELECT holder, ends FROM leases WHERE name = $1";

/// What comes late changes nothing.
pub(crate) const PUT_REPORT: &str = "INSERT INTO reports (replica, version, body) \
     VALUES ($1, $2, $3) ON CONFLICT (replica) \
     DO UPDATE SET version = excluded.version, body = excluded.body \
     WHERE reports.version < excluded.version";
pub(crate) const REPORT_VERSIONS: &str =
    "SELECT replica, version FROM reports ORDER BY replica LIMIT $1";
pub(crate) const REPORT: &str = "SELECT replica, version, body FROM reports WHERE replica = $1";

/// Every statement, so that a test can prepare each and look at its parameters.
#[cfg(test)]
pub(crate) const ALL: &[&str] = &[
    HEAD,
    MOVE_HEAD,
    RECORDS,
    PUT_RECORD,
    REMOVE_RECORD,
    FIRST_COMMIT,
    SPAN,
    CHANGES,
    CHANGES_END,
    ADD_COMMIT,
    ADD_CHANGE,
    TRIM_COMMITS,
    TRIM_CHANGES,
    EVENTS,
    LEAF_HASHES,
    LAST_LEAF,
    ADD_LEAF,
    KEEP_LOG,
    EMPTY_LOG,
    EMPTY_COMMITS,
    EMPTY_CHANGES,
    EMPTY_TOKENS,
    PAST_EVENTS,
    PAST_INCARNATION,
    CHECKPOINTS,
    ADD_CHECKPOINT,
    DROP_CHECKPOINTS,
    TILE_HASHES,
    ADD_TILE_HASH,
    TRIM_DETAILS,
    TRIM_PAST_DETAILS,
    ISSUED,
    ISSUED_AFTER,
    ADD_ISSUED,
    TRIM_ISSUED,
    SECRET,
    SECRETS,
    PUT_SECRET,
    TOKEN,
    TOKENS,
    ADD_TOKEN,
    SPEND_TOKEN,
    TRIM_TOKENS,
    NODE,
    NODES,
    ADD_NODE,
    SUCCEED_KEY,
    REMOVE_NODE,
    TOUCH_NODE,
    POINTS,
    ADD_POINT,
    REMOVE_POINT,
    REMOVE_POINTS,
    FLOWS,
    ADD_FLOW,
    TRIM_FLOWS,
    PAPERS,
    ADD_PAPER,
    REMOVE_PAPER,
    TALLIES,
    TALLIES_BEYOND,
    ADD_TALLY,
    TRIM_TALLIES,
    REVOKE_KEY,
    REVOKE_KEYS_OF_SERIAL,
    REVOKE_KEYS_OF_IDENTITY,
    REVOKE_KEYS_OF_NODE,
    IS_KEY_REVOKED,
    REVOKED_KEYS,
    TAKE_LEASE,
    LEASE,
    PUT_REPORT,
    REPORT_VERSIONS,
    REPORT,
];
