"""Every finding about refreshing, by its number, and the test that bears it.

U1-U17 and U23-U40 are what users of such libraries have suffered from. Most are borne by tests that
stand beside what they are about; those are listed here, so that none is lost when tests are moved.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from tests.helpers.refreshes import Call, Raw, Told, World
from tokenstore import TokenManager, TransientRefreshError
from tokenstore.testing import Answer, Transform

TESTS = Path(__file__).parents[1]
NUMBERS = [*range(1, 18), *range(23, 41), 45, 47, 50]

BORNE_BY = {
    1: [
        "whole/test_concurrency::test_twelve_processes_of_sixteen_threads_refresh_an_account_once",
        "torture/test_storm::test_fifty_rounds_of_the_race_are_fifty_requests",
        "torture/test_storm::test_a_storm_costs_no_login_that_could_be_kept",
        "cli/test_refresh::test_two_commands_at_once_share_the_work",
    ],
    2: [
        "whole/test_mission::test_threads_that_need_the_same_token_refresh_it_once",
        "lifecycle/test_refresh::test_those_who_wait_use_the_token_of_who_was_first",
        "lifecycle/test_refresh::test_another_account_is_not_waited_for",
    ],
    3: [
        "lifecycle/test_refresh::test_a_refused_token_that_somebody_has_replaced_gives_theirs",
        "lifecycle/test_refresh::test_a_verdict_keeps_the_tokens",
    ],
    4: [
        "oauth/test_client::test_only_a_usable_refresh_token_replaces_the_old_one",
        "whole/test_mission::test_a_refresh_keeps_the_refresh_token_if_none_is_given",
    ],
    5: [
        "lifecycle/test_refresh::test_a_store_that_cannot_be_written_spends_no_token",
        "lifecycle/test_refresh::test_storing_is_tried_again",
        "lifecycle/test_refresh::test_what_cannot_be_stored_is_in_the_error",
        "lifecycle/test_refresh::test_it_is_stored_before_anything_is_sent_again",
        "storage/sqlite/test_database::test_a_full_disk_is_an_error_and_keeps_the_old_row",
        "whole/test_faults::test_a_fault_is_an_error_and_loses_nothing",
    ],
    6: [
        "oauth/test_client::test_a_refused_refresh_raises_one_of_three_and_keeps_the_tokens",
        "storage/sqlite/test_database::test_a_lock_of_another_process_ends_in_a_storage_error",
        "whole/test_faults::test_a_fault_is_an_error_and_loses_nothing",
    ],
    7: [
        "lifecycle/test_refresh::test_a_dead_refresh_token_is_asked_about_once",
        "lifecycle/test_refresh::test_a_new_sign_in_clears_the_verdict",
        "lifecycle/test_refresh::test_corrected_settings_are_tried_anew",
        "whole/test_concurrency::test_a_verdict_is_known_to_every_process",
        "test_jsonfiles::test_an_import_forgets_that_a_sign_in_was_needed",
    ],
    8: [
        "lifecycle/test_refresh::test_a_request_that_was_sent_is_not_repeated",
        "lifecycle/test_refresh::test_a_connection_that_was_never_made_is_tried_once_more",
        "whole/test_concurrency::test_a_lost_answer_is_not_asked_for_again_by_those_who_waited",
    ],
    9: [
        "lifecycle/test_forecast::test_a_lifetime_in_an_answer_counts_from_its_request",
        "lifecycle/test_forecast::test_a_refresh_token_that_stays_grows_old",
        "lifecycle/test_bulk::test_what_was_not_used_for_some_time_is_kept_alive",
        "lifecycle/test_bulk::test_one_account_that_fails_stops_nothing",
        "cli/test_status::test_status_says_by_when_a_sign_in_is_needed",
        "cli/test_refresh::test_idle_for_takes_what_was_not_used_for_so_long",
    ],
    10: [
        "whole/test_crashes::test_killed_exports_leave_only_complete_files",
        "whole/test_crashes::test_an_export_removes_the_temporary_files_of_killed_ones",
        "torture/test_kills::test_no_export_is_half",
        "test_jsonfiles::test_an_export_that_is_killed_before_its_end_leaves_the_old_file",
        "test_jsonfiles::test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one",
        "test_jsonfiles::test_a_link_in_the_place_of_a_file_is_not_followed",
    ],
    11: [
        "test_jsonfiles::test_an_account_that_is_stored_is_skipped",
        "test_jsonfiles::test_importing_again_changes_nothing",
        "test_jsonfiles::test_newer_replaces_a_token_by_one_that_expires_later",
        "test_jsonfiles::test_one_bad_file_among_a_thousand_stops_nothing",
    ],
    12: [
        "storage/conformance/test_repository::test_an_outcome_does_not_touch_another_account",
        "lifecycle/test_refresh::test_another_provider_never_sees_the_refresh_token",
        "lifecycle/test_refresh::test_another_client_than_the_imported_one_sends_nothing",
        "whole/test_mission::test_saving_again_replaces_everything",
    ],
    13: ["whole/test_load::test_sixty_four_concurrent_processes_lose_nothing"],
    14: [
        "whole/test_concurrency::test_a_process_that_refreshes_one_account_does_not_hold_up_another",
        "lifecycle/test_refresh::test_a_refresh_is_written_down_before_its_request",
    ],
    15: [
        "oauth/test_http::test_a_request_ends_at_its_hard_end",
        "oauth/test_http::test_a_body_over_the_limit_is_not_read",
        "lifecycle/test_refresh::test_an_answer_that_does_not_end_is_given_up",
    ],
    16: [
        "whole/test_concurrency::test_a_killed_process_holds_up_nobody",
        "storage/sqlite/test_locks::test_a_lock_does_not_depend_on_the_clock",
        "storage/sqlite/test_locks::test_the_content_of_a_lock_file_is_ignored",
    ],
    17: [
        "lifecycle/test_refresh::test_a_lock_that_is_held_for_too_long_is_a_transient_error",
        "lifecycle/test_refresh::test_after_waiting_in_vain_a_token_that_came_is_used",
        "lifecycle/test_refresh::test_locks_that_cannot_be_taken_spend_no_token",
    ],
    23: [
        "models/test_timestamps::test_every_format_of_a_timestamp_is_parsed_in_every_zone",
        "models/test_tokens::test_expires_in_counts_real_seconds_over_a_clock_change",
        "importers/test_formats::test_a_file_of_google_auth_is_read_and_its_expiry_is_utc",
    ],
    24: ["oauth/test_client::test_no_expires_in_can_cost_the_new_tokens"],
    25: [
        "importers/test_formats::test_every_way_to_write_an_expiry_is_the_same_instant",
        "importers/test_formats::test_a_lifetime_alone_is_due_at_once_as_the_age_of_a_file_is_unknown",
        "importers/test_formats::test_a_lifetime_counts_from_when_the_token_was_obtained",
    ],
    26: [
        "test_manager::test_a_token_is_due_when_its_buffer_begins",
        "test_manager::test_tokens_that_live_shorter_than_the_buffer_cause_no_storm",
    ],
    27: [
        "test_manager::test_a_clock_that_leaps_ahead_refreshes_at_once",
        "test_manager::test_a_clock_that_is_set_back_looks_at_the_store",
    ],
    28: [
        "lifecycle/test_refresh::test_a_rejected_token_is_replaced_though_it_has_not_expired",
        "lifecycle/test_refresh::test_a_token_that_was_replaced_meanwhile_is_returned_without_a_request",
        "lifecycle/test_refresh::test_many_that_report_the_same_rejected_token_cause_one_request",
        "integrations/test_requests::test_a_refused_token_is_refreshed_and_the_request_is_retried",
        "integrations/test_requests::test_twenty_threads_with_a_refused_token_cause_one_refresh",
    ],
    29: [
        "oauth/test_client::test_a_refused_refresh_raises_one_of_three_and_keeps_the_tokens",
        "oauth/test_provider_dialects::test_a_refusal_is_understood_whatever_its_shape",
    ],
    30: ["oauth/test_client::test_an_answer_with_an_access_token_is_a_success"],
    31: [
        "oauth/test_client::test_a_strict_server_takes_every_method",
        "oauth/test_client::test_extra_parameters_are_sent_and_override_nothing",
        "oauth/test_provider_dialects::test_json_is_sent_as_such_where_it_is_wanted",
        "oauth/test_provider_dialects::test_basic_credentials_may_be_sent_as_they_are",
    ],
    32: [
        "oauth/test_client::test_no_scope_is_sent_unless_configured",
        "oauth/test_client::test_a_configured_scope_is_sent",
    ],
    33: ["oauth/test_client::test_a_refused_refresh_raises_one_of_three_and_keeps_the_tokens"],
    34: [
        "oauth/test_client::test_retry_after_is_read_in_both_forms_and_capped",
        "lifecycle/test_refresh::test_a_wait_that_was_asked_for_is_kept_by_everyone",
        "lifecycle/test_backoff::test_another_process_keeps_the_wait_and_counts_on",
        "lifecycle/test_backoff::test_a_token_that_is_still_valid_is_served_meanwhile",
    ],
    35: [
        "oauth/test_client::test_other_fields_are_merged",
        "whole/test_mission::test_an_old_file_is_imported_refreshed_and_exported_for_its_old_reader",
    ],
    36: [
        "integrations/test_requests::test_the_type_bearer_is_case_insensitive",
        "integrations/test_requests::test_a_token_that_is_not_bearer_is_refused_and_not_sent",
        "integrations/test_httpx::test_a_token_that_is_not_bearer_is_refused_and_not_sent",
        "integrations/test_google::test_a_token_that_is_not_bearer_is_refused_and_not_sent",
    ],
    37: [
        "whole/test_secrets::test_no_success_shows_a_secret",
        "whole/test_secrets::test_no_failure_shows_a_secret",
        "whole/test_secrets::test_no_repr_shows_a_secret",
    ],
    38: [
        "whole/test_secrets::test_no_storage_error_shows_a_secret",
        "whole/test_traps::test_t22_neither_errors_nor_logs_show_a_parameter",
    ],
    39: [
        "oauth/test_http::test_a_netrc_file_does_not_touch_the_authorization",
        "oauth/test_http::test_a_proxy_of_the_environment_is_used",
        "oauth/test_http::test_an_unusable_setting_of_the_environment_sends_nothing",
    ],
    40: [
        "oauth/test_http::test_a_redirect_is_an_answer_and_not_followed",
        "oauth/test_client::test_a_redirect_is_named_and_not_followed",
        "integrations/test_requests::test_another_origin_gets_no_token_and_its_401_refreshes_nothing",
        "integrations/test_httpx::test_another_origin_gets_no_token_and_its_401_refreshes_nothing",
    ],
    45: [
        "cli/test_status::test_status_shows_each_state_as_json",
        "cli/test_status::test_status_of_a_database_that_is_not_there_makes_none",
    ],
    47: [
        "lifecycle/test_hooks::test_what_is_told_is_committed",
        "lifecycle/test_hooks::test_a_hook_is_called_outside_the_lock_and_may_refresh_the_account_again",
        "lifecycle/test_hooks::test_a_login_dies_once",
        "lifecycle/test_hooks::test_a_hook_that_raises_changes_nothing_and_is_logged_without_secrets",
    ],
    50: [
        "test_aio::test_cancelling_a_caller_does_not_lose_the_rotated_token",
        "test_aio::test_a_loop_that_ends_during_a_refresh_loses_nothing",
        "test_pytest_plugin::test_an_application_tests_with_the_fixtures",
    ],
}


def functions_in(module: str) -> set[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("number", NUMBERS, ids="U{}".format)
def test_every_finding_is_borne_by_tests_that_exist(number: int) -> None:
    listed = BORNE_BY.get(number, [])
    for name in listed:
        module, _, test = name.partition("::")
        assert test in functions_in(module), name
    here = [
        name
        for name in functions_in("whole/test_findings")
        if re.match(f"test_u{number:02}_", name)
    ]
    assert listed or here


# -- what no other test bears -----------------------------------------------------------------


@pytest.mark.parametrize("given", ["absent", None, "", "same"])
def test_u04_a_second_refresh_works_whatever_the_first_said_of_the_refresh_token(
    tmp_path: Path, given: str | None
) -> None:
    with World(tmp_path, rotate=False) as world:
        old = world.sign_in()["refresh_token"]

        def change(answer: dict[str, Any]) -> dict[str, Any]:
            more = {} if given == "absent" else {"refresh_token": old if given == "same" else given}
            return {**answer, **more}

        world.server.script(Transform(change), Transform(change))
        manager = world.manager()
        first, second = (manager.refresh_token("alice") for _ in range(2))
        assert first["access_token"] != second["access_token"]
        assert world.tokens()[1] == old
        assert world.server.refreshes() == 2


def test_u04_a_second_refresh_sends_the_new_refresh_token(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    first, second = (manager.refresh_token("alice")["refresh_token"] for _ in range(2))
    assert first != second
    assert world.server.requests[1].params["refresh_token"] == first
    assert (world.server.refreshes(), world.server.reuses) == (2, 0)


def test_u06_a_provider_that_is_not_there_is_no_verdict(world: World) -> None:
    with create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/token"
    world.sign_in()
    before = world.tokens()
    manager = world.manager(providers={"test": world.server.provider(token_endpoint=url)})
    with pytest.raises(TransientRefreshError) as caught:
        manager.ensure_valid_token("alice")
    assert not caught.value.maybe_spent
    assert world.tokens() == before
    assert [account.state for account in manager.accounts()] == ["due"]
    assert world.manager().get_valid_token("alice") is not None


def test_u07_a_hundred_calls_cause_no_further_request(world: World) -> None:
    world.sign_in()
    world.server.revoke("alice")
    for _ in range(10):
        manager = world.manager()
        assert {manager.get_valid_token("alice") for _ in range(10)} == {None}
    assert world.posts == 1


def test_u12_changing_what_was_returned_changes_nothing_that_is_stored(
    world: World, manager: TokenManager
) -> None:
    saved = world.sign_in(nested={"of": ["alice"]})
    tokens = manager.refresh_token("alice")
    stored = manager.load_tokens("alice")
    for returned in (saved, tokens, manager.load_tokens("alice") or {}):
        returned["nested"]["of"].append("bob")
        returned["access_token"] = "of bob"
    assert manager.load_tokens("alice") == stored
    assert manager.get_valid_token("alice") == world.tokens()[0]


def test_u17_who_waits_outwaits_a_request_that_takes_all_its_time(world: World) -> None:
    world.sign_in()
    hold = world.hold()
    managers = [world.manager(timeout=0.5) for _ in range(2)]
    with Told() as told:
        first = Call(managers[0].get_valid_token, "alice")
        assert hold.arrived.wait(20)
        second = Call(managers[1].ensure_valid_token, "alice").waits()
        told.wait_for("get_valid_token alice: TransientRefreshError")
    assert first.result() is None
    error = second.error()  # that of the request, not one of having waited
    assert isinstance(error, TransientRefreshError)
    assert error.maybe_spent
    assert world.posts == 1


def test_u26_a_clock_that_is_set_back_makes_no_token_live_longer(
    world: World, manager: TokenManager
) -> None:
    world.sign_in()
    token = manager.get_valid_token("alice")
    world.clock.now -= 86400
    renewed = manager.get_valid_token("alice")
    assert renewed not in {None, token}
    assert manager.get_valid_token("alice") == renewed
    assert world.posts == 2


@pytest.mark.parametrize(
    ("answered", "stored"),
    [("other more", "other more"), ("b a", "b a"), (None, "openid"), ("", "")],
)
def test_u32_another_scope_is_stored_and_costs_nothing(
    world: World, manager: TokenManager, answered: str | None, stored: str
) -> None:
    world.sign_in()

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in answer.items() if name != "scope"}
        return rest if answered is None else {**rest, "scope": answered}

    world.server.script(Transform(change))
    tokens = manager.refresh_token("alice")
    assert tokens["scope"] == stored
    assert world.tokens()[0] == tokens["access_token"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Welcome to the hotel</html>", "text/html"),
        (b"", "application/json"),
        (b'{"hotel": ', "application/json"),
        (b"\xff\xfehotel", "application/octet-stream"),
    ],
    ids=["HTML", "empty", "cut", "bytes"],
)
def test_u33_what_is_no_answer_is_told_by_status_type_and_host_and_not_quoted(
    world: World, body: bytes, kind: str
) -> None:
    world.sign_in()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    with Raw(head.encode() + body) as hotel:
        provider = world.server.provider(token_endpoint=hotel.url)
        manager = world.manager(providers={"test": provider})
        with pytest.raises(TransientRefreshError) as caught:
            manager.ensure_valid_token("alice")
    told = str(caught.value)
    assert all(part in told for part in ("200", kind, hotel.host))
    assert "hotel" not in told
    assert caught.value.__cause__ is None
    assert len(hotel.received) == 1


@pytest.mark.parametrize("kind", ["bearer", "Bearer", "BEARER", "mac", "DPoP", None, 5])
def test_u36_a_token_type_is_kept_as_it_came_and_costs_nothing(
    world: World, manager: TokenManager, kind: object
) -> None:
    world.sign_in()
    world.server.script(Transform(lambda answer: {**answer, "token_type": kind}))
    assert manager.refresh_token("alice")["token_type"] == kind
    assert manager.get_valid_token("alice") == world.tokens()[0]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_u40_the_target_of_a_redirect_receives_nothing(
    world: World, manager: TokenManager, status: int
) -> None:
    world.sign_in()
    with Raw() as elsewhere:
        world.server.script(Answer.redirect(elsewhere.url, status))
        assert manager.get_valid_token("alice") is None
        assert elsewhere.received == []
    assert world.posts == 1
