"""Which rows of a forward belong to which adapter, and the matrices that those rows are multiplied by.

A segment is the rows of one member, which stand next to each other (the word of Punica, arXiv 2310.18547, for rows of
one adapter). A group of segments is multiplied at once.

Dimensions: rows: tokens of a ragged batch, or texts of a decoding batch; r: an adapter's rank; c: ranks of all
matrices A in a stack, added up; in, out: sizes of a layer's input and output.
"""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lora_sweep.multi_lora.adapter import Adapter
from lora_sweep.multi_lora.dropout import draw_dropped, join_dropped, zero_dropped
from lora_sweep.multi_lora.member_threads import get_member_thread

MAX_STACKED_ROWS = 512  # of a CPU's input: with more, as of prompts, the zeros of stacked adapters cost too much


class Segment(NamedTuple):
    """Rows ``begin`` to ``end`` of an input, and the member and adapter that they belong to."""

    member: int
    begin: int
    end: int
    adapter: Adapter


class Stack(NamedTuple):
    """The matrices of some adapters for all layers that read one input.

    Attributes:
        a: [c, in]: the matrices A below each other: all adapters' of the first layer, then of the next.
        b: for each layer [out, its part of c]: the matrices B next to each other.
        owners: for each layer the adapters of its columns and the layer's name, in order.
        widths: for each layer how many of the c columns are its own.
    """

    a: torch.Tensor
    b: list[torch.Tensor]
    owners: list[list[tuple[Adapter, str]]]
    widths: list[int]


class SegmentGroup(NamedTuple):
    """Segments that are multiplied at once.

    Attributes:
        rows: which rows of the input.
        scale: of the updates; or [rows, c], fp32: zero where a column belongs to another segment's adapter.
    """

    rows: slice
    segments: list[Segment]
    stack: Stack
    scale: float | torch.Tensor


@dataclass
class AdapterMap:
    """The adapters of a pack, and which rows of the present forward belong to each.

    Attributes:
        adapters: of the members of the pack; None for a member without one, such as a baseline.
        segment_sizes: number of rows of each member, in order. A layer may get a multiple of these rows.
        draw_numbers: the position of each member's rows in its training, which decides its dropout; None: no dropout.
        input: the last input that a layer read, [..., in].
        masks: of that input, by member: which numbers are dropped.
        outputs: of that input, by name: outputs [rows, out] of layers that were not called yet.
    """

    adapters: list[Adapter | None]
    segment_sizes: list[int] = field(default_factory=list)
    draw_numbers: list[int] | None = None
    input: torch.Tensor | None = None
    masks: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    # Kept from one input to the next, since making them costs more than the products of a few rows:
    groups_key: tuple[int, tuple[int, ...], bool] | None = None
    groups: dict[tuple[str, ...], list[SegmentGroup]] = field(default_factory=dict)  # by the layers' names
    stacks_key: list[bool] = field(default_factory=list)  # which members had rows
    stacks: dict[tuple[tuple[str, ...], tuple[int, ...]], Stack] = field(default_factory=dict)  # by layers and members
    scales: dict[tuple[tuple[int, tuple[int, ...]], tuple[tuple[int, int, float], ...]], torch.Tensor] = field(
        default_factory=dict
    )
    thread_maps: dict[int, "AdapterMap"] = field(default_factory=dict)  # by member thread, from 1 on

    def select_thread(self) -> "AdapterMap":
        """The map of the present member thread, which has a forward of its own."""
        number = get_member_thread()
        if number and number not in self.thread_maps:
            self.thread_maps[number] = AdapterMap(self.adapters)
        return self.thread_maps[number] if number else self

    def forget_input(self) -> None:
        """Release the last input, and what was made of it."""
        self.input, self.masks, self.outputs = None, {}, {}

    def forget_matrices(self) -> None:
        """Release the stacks: they are copies, and the adapters have changed."""
        self.stacks.clear()
        self.groups_key = None

    def list_segments(self, rows: int) -> list[Segment]:
        """The segments with an adapter in an input of ``rows`` rows."""
        multiple = rows // max(1, sum(self.segment_sizes))
        ends = list(itertools.accumulate(size * multiple for size in self.segment_sizes))
        bounds = enumerate(zip([0, *ends], ends, self.adapters, strict=False))
        return [
            Segment(member, begin, end, adapter)
            for member, (begin, end, adapter) in bounds
            if adapter is not None and begin < end
        ]

    def group_segments(self, x: torch.Tensor, names: tuple[str, ...]) -> list[SegmentGroup]:
        """Split the rows of ``x`` [rows, in], which the layers ``names`` read, into groups.

        A segment a group, where products cost most. All segments are one group where a call costs more than its
        products: for few rows, as in decoding, and on anything but a CPU. A row is then multiplied by zeros in place
        of other members' matrices, so a NaN in one member's rows is a NaN in all members' gradients.
        """
        key = (len(x), tuple(self.segment_sizes), self.draw_numbers is None)
        if self.groups_key != key:
            self.groups_key, self.groups = key, {}
            with_rows = [bool(size) for size in self.segment_sizes]
            if self.stacks_key != with_rows:  # a member's last text is written
                self.stacks_key = with_rows
                self.stacks.clear()
        if names not in self.groups:
            segments = [
                segment for segment in self.list_segments(len(x)) if any(name in segment.adapter.a for name in names)
            ]
            if len(segments) > 1 and (len(x) <= MAX_STACKED_ROWS or x.device.type != "cpu"):
                self.groups[names] = [self.build_group(x, slice(0, len(x)), segments, names)]
            else:
                self.groups[names] = [
                    self.build_group(x, slice(segment.begin, segment.end), [segment], names) for segment in segments
                ]
        return self.groups[names]

    def build_group(
        self, x: torch.Tensor, rows: slice, segments: list[Segment], names: tuple[str, ...]
    ) -> SegmentGroup:
        """The group of ``segments``, which lie in the ``rows`` of ``x`` [rows, in]."""
        key = names, tuple(segment.member for segment in segments)
        if key not in self.stacks:
            self.stacks[key] = stack_matrices([segment.adapter for segment in segments], names)
        # Dropout does not scale up what stays: the update is scaled up instead, which is fewer numbers.
        scales = [
            adapter.scale if self.draw_numbers is None else adapter.scale / (1 - adapter.dropout)
            for *_, adapter in segments
        ]
        if len(segments) == 1:
            return SegmentGroup(rows, segments, self.stacks[key], scales[0])
        columns = tuple(
            (segment.member, len(segment.adapter.a[name]), scale)
            for name in names
            for segment, scale in zip(segments, scales, strict=True)
            if name in segment.adapter.a
        )
        return SegmentGroup(rows, segments, self.stacks[key], self.build_scale(x, columns))

    def build_scale(self, x: torch.Tensor, columns: tuple[tuple[int, int, float], ...]) -> torch.Tensor:
        """The scale [rows, c], fp32, of each row of ``x`` [rows, in] in each column; 0 in other members' columns.

        Args:
            columns: member, number of columns, and scale, in order.
        """
        key = (len(x), tuple(self.segment_sizes)), columns
        if key not in self.scales:
            row_members = torch.full((len(x), 1), -1, device=x.device)  # [rows, 1]
            for segment in self.list_segments(len(x)):
                row_members[segment.begin : segment.end] = segment.member
            members = torch.tensor([member for member, count, _ in columns for _ in range(count)], device=x.device)
            scales = torch.tensor([scale for _, count, scale in columns for _ in range(count)], device=x.device)
            self.scales = {present: scale for present, scale in self.scales.items() if present[0] == key[0]}
            self.scales[key] = torch.where(row_members == members, scales, 0.0)  # [rows, c]
        return self.scales[key]

    def drop_inputs(
        self, x: torch.Tensor, group: SegmentGroup, names: tuple[str, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A group's rows of ``x`` [rows, in] after dropout, and the mask; None: nothing is dropped.

        A draw is a function of the adapter's seed, the position in its training, and the name of its first layer that
        reads the input. So it is the same in any pack, when gradient checkpointing computes a layer again, and after a
        resume.
        """
        rows, segments = x[group.rows], group.segments
        if self.draw_numbers is None or not any(segment.adapter.dropout for segment in segments):
            return rows, None
        for member, begin, end, adapter in segments:
            if member not in self.masks:
                first_name = next(name for name in names if name in adapter.a)
                seed = zlib.crc32(f"{adapter.seed} {self.draw_numbers[member]} {first_name}".encode())
                self.masks[member] = draw_dropped(x[begin:end], adapter.dropout, seed)
        mask = self.masks[segments[0].member]
        if len(segments) > 1:
            mask = join_dropped(rows, [(begin, end, self.masks[member]) for member, begin, end, _ in segments])
        return zero_dropped(rows, mask), mask


def stack_matrices(adapters: Sequence[Adapter], names: tuple[str, ...]) -> Stack:
    """The matrices of ``adapters`` for the layers ``names``; one adapter's matrices B are not copied."""
    owners = [[(adapter, name) for adapter in adapters if name in adapter.a] for name in names]
    widths = [sum(len(adapter.a[name]) for adapter, name in layer_owners) for layer_owners in owners]
    a = join_matrices([adapter.a[name] for layer_owners in owners for adapter, name in layer_owners], 0)  # [c, in]
    b = [
        join_matrices([adapter.b[name] for adapter, name in layer_owners], 1) if layer_owners else a[:0]
        for layer_owners in owners
    ]
    return Stack(a, b, owners, widths)


def join_matrices(matrices: list[torch.Tensor], dim: int) -> torch.Tensor:
    """A single matrix itself; several copied into one along ``dim``."""
    return matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim)
