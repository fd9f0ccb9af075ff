"""The pass mechanism: what it refuses, how it reports, and that a second run changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mdp_fx.errors import InputError
from mdp_fx.passes.base import VERIFY_VARIABLE, Compilation, Pass, PassError, PassResult, run_passes
from mdp_fx.passes.channel_groups import FindChannelGroups
from mdp_fx.passes.front_end import InferAxisTypes, TraceModel
from mdp_fx.passes.normalize import Normalize
from mdp_fx.pipeline import ANALYSES, FRONT_END, REWRITES
from tests.zoo import NestedBlocks, PreActivation, image


def _start() -> Compilation:
    return Compilation(NestedBlocks().eval(), (image(),))


class _Silent(Pass):
    ensures = ("groups",)

    def call(self, state: Compilation) -> PassResult:
        return PassResult(state)


class _EditsInSecret(Pass):
    requires = ("traced",)

    def call(self, state: Compilation) -> PassResult:
        assert state.traced is not None
        graph = state.traced.module.graph
        with graph.inserting_before(next(iter(graph.find_nodes(op="output")))):
            graph.call_function(torch.relu, (next(iter(graph.nodes)),))
        return PassResult(state)


class _ClaimsAnEdit(Pass):
    def call(self, state: Compilation) -> PassResult:
        return PassResult(state, modified=True)


class _Fails(Pass):
    def call(self, state: Compilation) -> PassResult:
        raise KeyError("lost")


class _TellsTheUser(Pass):
    def call(self, state: Compilation) -> PassResult:
        msg = "set --input"
        raise InputError(msg)


def test_a_pass_without_what_it_needs_is_refused() -> None:
    with pytest.raises(PassError, match=r"^infer axis types needs traced, which no pass before it gave$"):
        InferAxisTypes()(_start())


def test_a_broken_promise_is_noticed() -> None:
    with pytest.raises(PassError, match="silent promises groups and did not give it"):
        _Silent()(_start())


def test_an_analysis_may_not_say_that_it_edited() -> None:
    with pytest.raises(PassError, match="is an analysis and says that it edited"):
        _ClaimsAnEdit()(_start())


def test_a_secret_edit_is_noticed_where_the_verifier_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    state = TraceModel()(_start()).state
    with pytest.raises(PassError, match="edited the network and does not say so"):
        _EditsInSecret()(state)
    monkeypatch.delenv(VERIFY_VARIABLE)
    assert _EditsInSecret()(state).state is state


def test_the_order_is_checked_before_anything_runs() -> None:
    ran: list[str] = []
    with pytest.raises(PassError, match="find channel groups comes before a pass that gives graph"):
        run_passes((TraceModel(), FindChannelGroups(), InferAxisTypes()), _start(), stage=ran.append)
    assert ran == []


def test_a_failure_names_the_pass_and_those_before_it() -> None:
    with pytest.raises(PassError, match="fails failed, after trace model, normalize: 'lost'") as caught:
        run_passes((TraceModel(), Normalize(), _Fails()), _start())
    assert isinstance(caught.value.__cause__, KeyError)


def test_what_the_user_has_to_know_passes_through() -> None:
    with pytest.raises(InputError, match=r"^set --input$"):
        run_passes((_TellsTheUser(),), _start())


def test_stages_are_told_in_order() -> None:
    told: list[str] = []
    run_passes((*FRONT_END, *ANALYSES), _start(), stage=told.append)
    assert told == [
        "trace model",
        "normalize",
        "infer axis types",
        "find channel groups",
        "find residual blocks",
        "find cost regions",
    ]


def test_a_second_run_of_every_pass_changes_nothing() -> None:
    state = Compilation(PreActivation().eval(), (image(),))
    edited: list[str] = []
    for step in (*FRONT_END, *ANALYSES, *REWRITES):
        if step is REWRITES[0]:
            assert state.blocks is not None
            assert state.groups is not None
            kept = {state.groups[0].name: [0, 2]}
            state = replace(state, kept=kept, removed_blocks=[state.blocks.removable[0].name])
        first = step(state)
        edited += [step.name] if first.modified else []
        state = first.state
        again = step(state)
        assert not again.modified, step.name
    assert edited == ["normalize", "slice channels", "drop blocks"]


def test_nothing_kept_out_and_nothing_removed_is_no_edit() -> None:
    state = run_passes((*FRONT_END, *ANALYSES), _start())
    state = replace(state, kept={}, removed_blocks=[])
    for step in REWRITES:
        result = step(state)
        assert not result.modified
        state = result.state
    assert state.slim is not None


def test_the_batch_is_that_of_the_first_tensor() -> None:
    assert Compilation(NestedBlocks(), (image(batch=5),)).batch == 5
    with pytest.raises(InputError, match="hold no tensor with a batch axis"):
        _ = Compilation(NestedBlocks(), (3,)).batch
