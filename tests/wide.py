# SPDX-License-Identifier: Apache-2.0
"""What `make test` leaves out and `make test-wide` runs: further forms, shapes and cases of what `make test`
tests in others. CONTRIBUTING.md has the last result."""

from __future__ import annotations

WIDE: dict[str, dict[str, tuple[str, ...]]] = {  # by file and function: what parameters of such a test have
    "test_attention.py": {
        "test_every_option_on_the_triton_backend": (
            "options2",
            "options3",
            "options5",
            "options6",
            "options4",
        ),
        "test_a_row_is_bitwise_that_of_its_chain_on_the_triton_backend": ("options0", "options2"),
        "test_compiles_whole": ("inductor",),
    },
    "test_attention_hostile.py": {
        "test_odd_sizes_on_the_triton_backend": ("cache1", "cache2", "cache4"),
    },
    "test_budget.py": {
        "test_it_comes_near_the_best_fixed_length": ("0.3-", "-0.2", "-0.5", "-0.9]"),
    },
    "test_cli.py": {
        "test_doctor_finds_a_backend_that_is_wrong": ("sample", "tree_attention"),
    },
    "test_commit.py": {
        "test_commit_kv_compiles_whole": ("inductor",),
        "test_the_interpreter_is_of_the_same_opinion": ("",),
    },
    "test_ends_exact.py": {
        "test_stops_and_limits_inside_trees_are_lossless": ("-match",),
    },
    "test_generate.py": {
        "test_sampled_text_has_the_models_law": ("token",),
    },
    "test_generate_loop.py": {
        "test_sampled_text_has_the_models_law_however_it_is_read": ("chains", "states"),
    },
    "test_gpu_report.py": {
        "test_counts_aimed_at_are_met": ("verify, to", "verify, tr", "N = "),
        "test_kernels_neither_spill_nor_crowd_the_registers": ("",),
    },
    "test_grow.py": {
        "test_adaptive_trees_are_lossless": ("-match", "cut_in_two", "deep"),
        "test_drafting_and_verifying_follow_the_target": ("plain-",),
        "test_coupled_drafts_match_more": ("",),
    },
    "test_lossy.py": {
        "test_triton_agrees": ("Ensemble", "Deferred"),
    },
    "test_match.py": {
        "test_sequences_equal_plain_sampling": ("sampling1", "sampling2-guessing"),
    },
    "test_models.py": {
        "test_text_is_the_models_own": (
            "bamba",
            "bart",
            "bloom",
            "minimax",
            "mistral",
            "mpt",
            "roberta",
            "falcon_h1",
            "gemma3",
            "lfm2",
        ),
    },
    "test_module.py": {
        "test_the_whole_step_compiles": ("inductor",),
    },
    "test_referee.py": {
        "test_loops_are_judged": ("dropped", "again"),
        "test_mistakes_are_found": ("bonus", "dropped", "wrong", "token-wise"),
        "test_our_rules_pass": ("drawn-match", "chosen-token", "chosen-traversal"),
        "test_verifiers_of_one_request_pass": ("",),
    },
    "test_rows_exact.py": {
        "test_every_choice_of_rows_is_lossless": ("-match", "padded", "bushy_independent"),
    },
    "test_state.py": {
        "test_triton_replays_within_rounding": ("",),
    },
    "test_statistics.py": {
        "test_first_token_and_pair_follow_the_target": ("-match", "hybrid_last", "independent"),
        "test_with_every_cut": ("-match", "hybrid_first-token", "chain-traversal"),
    },
    "test_steps.py": {
        "test_three_steps_follow_the_target": (
            "-match",
            "unseeded",
            "top_k",
            "likeliest",
            "ngram_draft",
            "independent",
            "without_replacement-token",
        ),
    },
    "test_synchronisation.py": {
        "test_nothing_makes_the_host_wait": (
            "match with cuts",
            "typical",
            "with ends",
            "sample with cuts",
            "replay_gated",
            "ngram_draft",
            "every option",
        ),
        "test_launches_do_not_depend_on_data": ("every option",),
    },
    "test_triton_attention.py": {
        "test_keys_and_values_are_copied_while_others_are_multiplied": ("128", "16 rows"),
        "test_the_rest_of_the_batch_changes_nothing_where_launches_are_alike": (
            "options0",
            "options1",
            "options2",
        ),
    },
    "test_triton_children.py": {
        "test_tokens_and_scores_agree": ("independent", "top_k", "hybrid-dtype4"),
    },
    "test_triton_edits.py": {
        "test_what_is_reported_has_the_edits": ("",),
    },
    "test_triton_ends.py": {
        "test_stops_and_rows_by_number_agree": ("",),
    },
    "test_triton_hopper.py": {
        "test_attention_for_sm_90": ("options0", "options1", "options4", "options3"),
    },
    "test_triton_interpreter.py": {
        "test_kernels_agree_with_the_reference": ("sample",),
    },
    "test_triton_reporting.py": {
        "test_reports_agree": ("raw", "temperature"),
        "test_sampled_tokens_are_reported": ("",),
    },
    "test_triton_rows.py": {
        "test_rows_of_trees_agree": ("",),
    },
    "test_triton_sample.py": {
        "test_a_threshold_is_collected_in_one_read": ("dtype1", "dtype3", "dtype5", "dtype7"),
        "test_tokens_and_logprobs_agree": ("dtype1", "dtype3", "dtype4"),
        "test_vocabularies_of_models_agree": ("32768", "128256"),
        "test_wide_cuts_agree": ("dtype1",),
        "test_bitmasks_agree": ("0.7",),
    },
    "test_triton_scratch.py": {
        "test_programs_of_a_row_may_sum_one_after_the_other": ("[1]", "[0]"),
        "test_what_is_no_proposal_counts_as_point_beside_others": ("rule1",),
        "test_wrong_offsets_disturb_no_sound_request": ("match", "offsets1", "offsets2", "offsets3"),
    },
    "test_triton_verify.py": {
        "test_forms_of_the_draft_agree": ("token",),
        "test_results_thresholds_and_masses_agree": ("lenient", "relaxed", "synthetic", "typical"),
    },
    "test_triton_warmup.py": {
        "test_kernels_are_compiled_in_other_processes": ("",),
    },
}


def is_wide(name: str) -> bool:
    """Whether a test, by its file, function and parameters, is left out by `make test`."""
    return bool(_entries_of(name))


def stale(names: list[str]) -> list[tuple[str, str, str]]:
    """Entries that no test of whole files has."""
    files = {name.partition("::")[0] for name in names} & WIDE.keys()
    entries = {(f, test, part) for f in files for test, parts in WIDE[f].items() for part in parts}
    return sorted(entries.difference(*map(_entries_of, names)))


def _entries_of(name: str) -> set[tuple[str, str, str]]:
    file, _, test = name.partition("::")
    function, _, parameters = test.partition("[")
    parts = WIDE.get(file, {}).get(function, ())
    return {(file, function, part) for part in parts if part in f"[{parameters}"}
