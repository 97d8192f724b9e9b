//! What every store does, whatever it is made of. After each claim the whole store is checked.

#![expect(clippy::unwrap_used, reason = "what a test sets up may fail loudly")]

#[path = "../support/certificates.rs"]
mod certificates;
mod copies;
mod crash;
mod duties;
mod equality;
mod files;
mod fixture;
mod joining;
mod log;
mod nodes;
mod outage;
mod promoted;
mod replicas;
mod revisions;
mod rows;
mod served;
#[path = "../support/postgres.rs"]
mod server;
mod sessions;
mod tampered;
mod tls;

use std::sync::Arc;

use countersign_store::{Store, verify_everything};
use fixture::Fixture;

type Shared = Arc<dyn Store>;

macro_rules! claims {
    ($($topic:ident::$claim:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                crate::check(crate::Fixture::memory(), crate::$topic::$claim).await;
            })*
        }

        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                crate::check(crate::Fixture::sqlite(), crate::$topic::$claim).await;
            })*
        }

        mod postgres_read_committed {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let fixture = crate::Fixture::postgres("read committed").await;
                crate::check(fixture, crate::$topic::$claim).await;
            })*
        }

        mod postgres_serializable {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $claim() {
                let fixture = crate::Fixture::postgres("serializable").await;
                crate::check(fixture, crate::$topic::$claim).await;
            })*
        }
    };
}

async fn check<F: Future<Output = ()>>(fixture: Fixture, claim: impl FnOnce(Shared) -> F) {
    claim(Arc::clone(&fixture.store)).await;
    verify_everything(&*fixture.store).await.unwrap();
}

claims! {
    nodes::a_revoked_key_is_refused_for_ever_whoever_names_it
    nodes::points_are_on_record_until_they_are_gone
    nodes::a_join_token_raced_by_many_is_spent_once
    nodes::a_join_token_is_refused_when_unknown_expired_or_spent
    revisions::a_change_made_for_another_revision_is_a_conflict
    revisions::what_was_authorised_before_rights_were_taken_away_is_fenced
    revisions::a_certificate_from_the_future_is_refused
    revisions::taking_rights_away_beside_the_map_moves_the_revision_too
    revisions::a_new_incarnation_begins_anew_and_keeps_the_log_before
    revisions::only_changes_move_the_revision
    revisions::a_refused_batch_leaves_nothing_behind
    revisions::nobody_sees_a_revision_before_the_one_before_it
    revisions::a_snapshot_and_the_changes_after_it_are_the_next_snapshot
    revisions::large_commits_make_short_pages
    revisions::a_reader_from_elsewhere_needs_a_snapshot
    revisions::a_reader_too_far_behind_needs_a_snapshot
    log::each_receipt_names_the_leaf_of_its_certificate
    log::concurrent_issuers_get_receipts_of_their_own
    log::an_issuance_without_its_event_or_with_another_is_refused
    log::an_event_that_claims_an_issuance_needs_its_row
    log::a_serial_is_recorded_once
    log::what_is_signed_of_a_log_is_kept_beside_it
    log::dropped_details_leave_the_log_as_it_is
    nodes::an_older_generation_of_a_nodes_key_is_refused
    nodes::a_revoked_key_brings_no_successor
    nodes::a_key_of_another_node_is_refused
    nodes::a_removed_node_is_unknown_to_everything
    duties::a_lease_gives_way_to_its_holder_and_to_who_names_it_exactly
    duties::a_server_ahead_of_time_takes_nothing_from_who_renews
    duties::a_dead_holders_duty_is_taken_by_one_whose_clock_is_behind
    duties::a_server_that_is_restarted_has_its_duty_at_once
    duties::a_duty_that_nobody_renews_any_more_is_taken_by_one_of_many
    duties::who_watches_has_a_free_duty_as_soon_as_it_wants_it
    duties::a_clock_that_is_set_makes_no_second_holder
    nodes::flows_are_counted_together_and_forgotten_when_old
    nodes::a_paper_stays_as_it_was_first_kept_and_no_other_takes_its_name_until_it_is_dropped
    nodes::tallies_are_added_up_and_read_from_the_newest
    nodes::a_replicas_report_is_replaced_whole_by_a_later_one_only
    log::trimming_keeps_all_that_somebody_may_need
    nodes::too_much_at_once_is_refused
    log::pages_are_bounded_and_in_order
    nodes::a_secret_is_replaced_whole_and_never_printed
    revisions::the_hint_follows_the_revision
    log::the_log_grows_and_is_never_rewritten
}
