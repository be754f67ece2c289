# SPDX-License-Identifier: Apache-2.0
"""Decoding pipelines of other packages as loops for the referee, with the referee's models in their formats.

The models are tables: the logits of the next token by the last one.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from specdec_kernels.testing.cases import VOCAB

END, HEAD, LEAST = VOCAB, 64, -100.0
DRAFTS = 2  # of a step


def loop_of(make, drafts=""):
    """The loop of a pipeline, for `check_lossless`.

    Args:
        make: `make(target table, drafter table or None, lookup)` -> `write(prompt, new_tokens, seed)`, which
            returns the new tokens and how often the target ran.
        drafts: "model": from a draft model; "lookup": from the prompt; "": none.
    """

    def loop(target, drafter, prompts, new_tokens, generator):
        logits = table(target)
        write = make(logits, table(drafter) if drafts == "model" else None, drafts == "lookup")
        texts = []
        for prompt in prompts.tolist():
            seed = int(torch.randint(1 << 31, (), generator=generator))
            text, passes = write(before(logits) + prompt, new_tokens, seed)
            texts.append(text)
            for _ in range(passes - 1):  # the referee counts the calls, and `table` was one
                target(prompts)
        if drafts == "lookup" and passes < new_tokens:
            drafter(prompts)
        return torch.tensor(texts)

    return loop


def table(model):
    """The logits after each token, as tuples."""
    logits = model(torch.arange(VOCAB)[None])[0].clamp(min=LEAST)
    return tuple(map(tuple, logits.tolist()))


def before(logits):
    """What stands before the prompt, for prompt lookup: each token and what is likeliest after it."""
    tokens = []
    for token in range(VOCAB):
        for _ in range(3):
            tokens.append(token)
            token = max(range(VOCAB), key=logits[token].__getitem__)
    return tokens


def save_openvino(logits, folder):
    """A model with one layer of attention, of which 1e-20 parts are read: the pipeline replaces attention by
    its own, and takes the rows that it needs before the last product."""
    import openvino as ov
    from openvino import opset13 as op
    from openvino.opset6 import assign, read_value

    folder.mkdir()

    def ints(*values):
        return op.constant(torch.tensor(values).numpy())

    def floats(values):
        return op.constant(torch.as_tensor(values, dtype=torch.float32).numpy())

    def named(node, name):
        node.output(0).set_names({name})
        return node

    def heads():  # [B, 1, T, HEAD]
        product = op.matmul(embedded, floats(torch.eye(HEAD)), False, False)
        return op.transpose(op.reshape(product, ints(0, 0, 1, HEAD), True), ints(0, 2, 1, 3))

    ids, mask, positions = (
        named(op.parameter([-1, -1], ov.Type.i64, name=name), name)
        for name in ("input_ids", "attention_mask", "position_ids")
    )
    beam = named(op.parameter([-1], ov.Type.i32, name="beam_idx"), "beam_idx")
    word = op.gather(floats(torch.eye(len(logits), HEAD)), ids, ints(0))
    embedded = op.add(word, op.unsqueeze(op.convert(positions, "f32"), ints(2)))
    empty = op.concat([op.gather(op.shape_of(ids), ints(0), ints(0)), ints(1, 0, HEAD)], 0)
    kept, wholes, shape = [], [], ov.PartialShape([-1, 1, -1, HEAD])
    for name in ("key", "value"):
        state = f"past_key_values.0.{name}present.0.{name}"
        past = read_value(op.broadcast(floats(0.0), empty), state, ov.Type.f32, shape)
        wholes.append(op.concat([op.gather(past, beam, ints(0)), heads()], 2))
        kept.append(assign(wholes[-1], state))
    seen = op.multiply(op.subtract(op.convert(mask, "f32"), floats(1.0)), floats(1e9))
    attention = op.scaled_dot_product_attention(heads(), *wholes, op.unsqueeze(seen, ints(1, 2)))
    attention = op.reshape(op.transpose(attention, ints(0, 2, 1, 3)), ints(0, 0, HEAD), True)
    hidden = op.add(word, op.multiply(attention, floats(1e-20)))
    weights = floats(torch.nn.functional.pad(torch.as_tensor(logits), (0, 0, 0, HEAD - len(logits))))
    output = named(op.matmul(hidden, weights, False, False), "logits")
    model = ov.Model([op.result(output)], kept, [ids, mask, positions, beam], "table")
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    sizes = dict(hidden_size=HEAD, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1)
    (folder / "config.json").write_text(json.dumps(dict(model_type="llama", vocab_size=len(logits), **sizes)))

    # A draft model needs a tokenizer. This one turns a text into one token 0.
    texts = op.parameter([-1], ov.Type.string)
    shape = op.concat([op.shape_of(texts), ints(1)], 0)
    pair = [named(op.broadcast(ints(i), shape), n) for i, n in enumerate(("input_ids", "attention_mask"))]
    tokenizer = ov.Model([op.result(node) for node in pair], [texts], "tokenizer")
    ov.save_model(tokenizer, folder / "openvino_tokenizer.xml")


def read_openvino(folder):
    """The logits after each token, by the model alone."""
    import openvino as ov

    ids, beam = torch.arange(VOCAB)[None], torch.zeros(1, dtype=torch.int32)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=ids, beam_idx=beam)
    run = ov.Core().compile_model(f"{folder}/openvino_model.xml", "CPU").create_infer_request()
    run.infer({name: values.numpy() for name, values in inputs.items()})
    return torch.tensor(run.get_tensor("logits").data[0])


@lru_cache(maxsize=1)
def openvino(target, drafter, lookup):
    """`openvino_genai.LLMPipeline`."""
    import openvino as ov
    import openvino_genai as genai

    with TemporaryDirectory() as folder:
        options = dict(prompt_lookup=True) if lookup else {}
        for name, logits in (("target", target), ("drafter", drafter)):
            if logits is not None:
                save_openvino(logits, Path(folder) / name)
        if drafter is not None:
            options["draft_model"] = genai.draft_model(f"{folder}/drafter", "CPU")
        assert torch.allclose(read_openvino(f"{folder}/target"), torch.tensor(target), atol=1e-5)
        options["scheduler_config"] = genai.SchedulerConfig()  # without prefix caching: see docs/referee.md
        pipeline = genai.LLMPipeline(f"{folder}/target", "CPU", **options)

    def write(prompt, new_tokens, seed):
        config = genai.GenerationConfig(
            max_new_tokens=new_tokens, do_sample=True, ignore_eos=True, eos_token_id=END, rng_seed=seed
        )
        if lookup:
            config.max_ngram_size = 2
        if lookup or drafter is not None:
            config.num_assistant_tokens = DRAFTS
        found = pipeline.generate(ov.Tensor(torch.tensor([prompt]).numpy()), config)
        return found.tokens[0], len(found.perf_metrics.raw_metrics.m_batch_sizes)

    return write


def save_onnx(logits, path):
    """With an end token, as it must be one of the vocabulary, which has no probability."""
    import onnx
    from onnx import helper

    def int32(name, places):
        return helper.make_tensor_value_info(name, onnx.TensorProto.INT32, ["batch", places])

    padded = torch.nn.functional.pad(torch.tensor(logits), (0, 1, 0, 1), value=LEAST)
    values = onnx.numpy_helper.from_array(padded.numpy(), "table")
    rows = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", "new", VOCAB + 1])
    node = helper.make_node("Gather", ["table", "input_ids"], ["logits"])
    inputs = [int32("input_ids", "new"), int32("attention_mask", "all")]
    graph = helper.make_graph([node], "table", inputs, [rows], [values])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


@lru_cache(maxsize=1)
def onnxruntime(target, drafter, lookup):
    """`onnxruntime_genai.Generator`, with models that have no layer: there is no cache to rewind."""
    import onnxruntime_genai as genai

    heads = dict(num_attention_heads=1, num_key_value_heads=1, head_size=1)
    inputs = dict(input_ids="input_ids", attention_mask="attention_mask")
    model = dict(num_hidden_layers=0, hidden_size=1, inputs=inputs, outputs=dict(logits="logits"), **heads)
    tokens = dict(vocab_size=VOCAB + 1, bos_token_id=END, eos_token_id=[END], pad_token_id=END)
    description = dict(type="decoder", context_length=64, **tokens)
    with TemporaryDirectory() as folder:
        for name, logits in (("decoder", target), ("draft", drafter)):
            if logits is not None:
                save_onnx(logits, f"{folder}/{name}.onnx")
                options = dict(provider_options=[])
                description[name] = dict(session_options=options, filename=f"{name}.onnx", **model)
        config = dict(model=description, search=dict(max_length=64))
        (Path(folder) / "genai_config.json").write_text(json.dumps(config))
        loaded = genai.Model(folder)

    def write(prompt, new_tokens, seed):
        options = genai.GeneratorParams(loaded)
        law = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, random_seed=seed)
        options.set_search_options(max_length=len(prompt) + new_tokens, **law)
        if lookup:
            options.set_speculative_options(ngram_size=2)
        if lookup or drafter is not None:
            options.set_speculative_options(max_draft_tokens=DRAFTS)
        generator = genai.Generator(loaded, options)
        generator.append_tokens(torch.tensor(prompt, dtype=torch.int32).numpy())
        while not generator.is_done():
            generator.generate_next_token()
        passes = generator.get_speculative_stats()["target_forward_passes"]
        return generator.get_sequence(0)[len(prompt) :].tolist(), passes or new_tokens

    return write
