# SPDX-License-Identifier: Apache-2.0
"""What `generate` withstands: threads that share a model."""

from __future__ import annotations

import threading

import transformers

from specdec_kernels.integrations.transformers import probe


def test_threads_that_probe_one_model_leave_its_window(monkeypatch):
    """Each thread would otherwise put back the window that the other one has narrowed."""
    config = transformers.MistralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=5,
    )
    model = transformers.MistralForCausalLM(config).eval()
    monkeypatch.setattr(probe, "_VERDICTS", {})
    inside, both, run = threading.Event(), threading.Event(), probe._Probe._run

    def slow(self):
        if inside.is_set():
            both.set()
        else:
            inside.set()
            both.wait(0.5)
        return run(self)

    monkeypatch.setattr(probe._Probe, "_run", slow)
    verdicts = []

    def ask():
        verdicts.append(probe.explain_model(model).serves)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert verdicts == ["trees", "trees"]
    assert model.config.sliding_window == 5
    assert not both.is_set() and len(probe._VERDICTS) == 1
