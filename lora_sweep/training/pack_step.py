"""One step of a pack: the forward and backward passes of its members, batched, one after another, or in parallel."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_sweep.model.device import Device, read_free_memory, wait_for_device
from lora_sweep.multi_lora.attention import use_layout
from lora_sweep.multi_lora.head_loss import compute_head_loss
from lora_sweep.multi_lora.layout import RaggedBatch, concatenate_rows
from lora_sweep.multi_lora.segments import AdapterMap
from lora_sweep.training.member import MemberTraining, MicroBatch
from lora_sweep.training.step_modes import MEMBER_THREADS, MemberThreads

ACTIVATION_MEMORY_SHARE = 0.5  # the part of the free memory that one forward for several members may fill


@dataclass(frozen=True)
class PackStep:
    """Takes one optimizer step for each of some members.

    Attributes:
        trainings: of all members of the pack, in the order of the adapters in ``adapter_map``.
        max_tokens: the most tokens of a forward for several members.
    """

    base: PreTrainedModel
    adapter_map: AdapterMap
    trainings: Sequence[MemberTraining]
    device: Device
    max_tokens: int

    def step_batched(self, active: Sequence[MemberTraining]) -> None:
        """Several members in one forward, as far as ``max_tokens`` allows."""
        self.add_gradients(active, self.max_tokens)
        if not all(training.has_finite_gradient() for training in active):
            # One member's NaN can spread to all members of a forward: find out whose it is.
            for training in active:
                training.discard_gradient()
            self.add_gradients(active)
        for training in active:
            training.take_step()

    def step_sequential(self, active: Sequence[MemberTraining]) -> None:
        """One member after another."""
        self.add_gradients(active)
        for training in active:
            training.take_step()

    def step_parallel(self, active: Sequence[MemberTraining], threads: MemberThreads, once: bool) -> None:
        """Each member in a thread of its own, :data:`MEMBER_THREADS` at a time.

        Args:
            once: take exactly one step for each member. Otherwise each thread goes on with another step as soon as it
                is done, until fewer members than threads have steps left.
        """

        def add_member_gradient(training: MemberTraining, time_share: float) -> None:
            self.add_gradients([training], time_share=time_share)

        in_threads = len(active)
        if once or in_threads < MEMBER_THREADS:
            in_threads = in_threads // MEMBER_THREADS * MEMBER_THREADS
        if in_threads:
            threads.run_steps(active[:in_threads], add_member_gradient, once)
        self.step_sequential(active[in_threads:])  # a member without a partner uses all cores

    def add_gradients(self, active: Sequence[MemberTraining], max_tokens: int = 0, time_share: float = 1.0) -> None:
        """Compute the losses and gradients of the next step of ``active``, without taking it."""
        for group in group_micro_batches(active, max_tokens):
            forward_backward(self.base, self.adapter_map, self.trainings, group, self.device, time_share)


def find_max_tokens(base: PreTrainedModel, trainings: Sequence[MemberTraining], device: Device) -> int:
    """The most tokens of a forward for several members.

    On a CPU: the tokens of the largest micro-batch, so that a pack needs no more memory than one training. Elsewhere:
    as many tokens as fit into half of the free memory, because there a call takes as long for few tokens as for many.
    A token's activations are estimated as the inputs and outputs of all linear layers, twice.
    """
    largest = max(training.longest_row * training.member.train.per_device_train_batch_size for training in trainings)
    free_bytes = None if device.type == "cpu" else read_free_memory(device)
    if free_bytes is None:
        return largest
    layers = [module for module in base.base_model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    values_per_token = 2 * sum(
        sum(layer.weight.shape) if isinstance(layer, Conv1D) else layer.in_features + layer.out_features
        for layer in layers
    )
    bytes_per_token = max(1, values_per_token * device.compute_bytes)
    return max(largest, int(ACTIVATION_MEMORY_SHARE * free_bytes / bytes_per_token))


def group_micro_batches(active: Sequence[MemberTraining], max_tokens: int) -> list[list[MicroBatch]]:
    """The micro-batches of the next step of ``active``, in groups that are computed in one forward each.

    A group has at most one micro-batch of a member.

    Args:
        max_tokens: the most tokens of a group with several micro-batches; 0: each group has one.
    """
    groups: list[list[MicroBatch]] = []
    group_tokens = 0
    for micro_batch in [micro_batch for training in active for micro_batch in training.split_micro_batches()]:
        tokens = micro_batch.tokens
        fits = groups and group_tokens + tokens <= max_tokens
        if fits and all(other.training is not micro_batch.training for other in groups[-1]):
            groups[-1].append(micro_batch)
        else:
            groups.append([micro_batch])
            group_tokens = 0
        group_tokens += tokens
    return groups


def forward_backward(
    base: PreTrainedModel,
    adapter_map: AdapterMap,
    trainings: Sequence[MemberTraining],
    group: list[MicroBatch],
    device: Device,
    time_share: float = 1.0,
) -> None:
    """Run one forward and backward pass, and add losses and gradients to the next step of the group's members.

    Args:
        trainings: of all members of the pack, in the order of the adapters in ``adapter_map``.
        group: micro-batches of different members.
        time_share: the part of the elapsed time that counts as this group's.
    """
    started, adapter_map = time.perf_counter(), adapter_map.select_thread()
    members, batch = find_members(group, trainings), lay_out_group(group, device)
    dropout_keys = [micro_batch.dropout_key for micro_batch in group]
    tokens_by_member = spread_values(batch.segment_sizes, members, len(trainings))
    targets_by_member = spread_values(batch.target_counts, members, len(trainings))
    adapter_map.forget_matrices()
    adapter_map.draw_numbers = spread_values(dropout_keys, members, len(trainings))
    adapter_map.segment_sizes = tokens_by_member
    with use_layout(batch):
        outputs = base.base_model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        states = outputs.last_hidden_state[0].index_select(0, batch.logit_positions)  # [1, T, hidden] -> [n, hidden]
        head = base.get_output_embeddings()
        adapter_map.segment_sizes = targets_by_member  # the head sees only the n states
        loss, token_losses = compute_head_loss(states, head, batch.target_ids, batch.target_weights)  # [], [n]
        adapter_map.segment_sizes = tokens_by_member  # for gradient checkpointing: it computes the layers again
        torch.autograd.backward(loss)
    adapter_map.forget_input()
    wait_for_device(device)  # otherwise the next group would be charged for this one's time
    losses = torch.zeros(len(group), device=device.type)
    losses.index_add_(0, batch.target_members, token_losses * batch.target_weights)  # [n] -> [len(group)]
    add_losses(group, losses, batch.segment_sizes, time_share * (time.perf_counter() - started))


def add_losses(group: Sequence[MicroBatch], losses: torch.Tensor, tokens: Sequence[int], seconds: float) -> None:
    """Add the losses [len(group)] and the time, divided by ``tokens``, to the next step of the group's members."""
    for micro_batch, loss, micro_tokens in zip(group, losses, tokens, strict=True):
        training = micro_batch.training
        training.loss = training.loss + loss
        training.progress.train_seconds += seconds * micro_tokens / sum(tokens)


def lay_out_group(group: Sequence[MicroBatch], device: Device) -> RaggedBatch:
    """The rows of a group as one ragged batch of T tokens, n of them with a label to predict."""
    return concatenate_rows(
        [micro_batch.make_member_rows() for micro_batch in group],
        [micro_batch.training.member.train.loss_on for micro_batch in group],
        device.type,
        device.compute_dtype,
    )


def find_members(group: Sequence[MicroBatch], trainings: Sequence[MemberTraining]) -> list[int]:
    """The index in ``trainings`` of each micro-batch's member."""
    return [
        next(index for index, training in enumerate(trainings) if training is micro_batch.training)
        for micro_batch in group
    ]


def spread_values(values: Sequence[int], members: Sequence[int], count: int) -> list[int]:
    """A list of one value a member: ``values`` at the indices ``members``, and 0 for all other members."""
    spread = [0] * count
    for member, value in zip(members, values, strict=True):
        spread[member] = value
    return spread
