"""Four rows at a time: what the compiled scan (kernels.py) does in LLVM's vectors.

Written as LLVM IR, since order counts: a score has to be numpy's to the bit, and numba has no word
for the order in which a loop's sums are added. No operation may be reassociated or contracted:
nothing here carries a fast-math flag. This module needs numba (extra ``fast``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()
_F32X4, _F32X8 = ir.VectorType(_F32, 4), ir.VectorType(_F32, 8)
_I8X16, _I16X16, _I32X16 = (ir.VectorType(of, 16) for of in (_I8, _I16, _I32))

# numpy sums up to so many numbers in 8 accumulators, more by halves.
_BLOCK = 128
_LINE = 64  # bytes of a cache line

# What stands here for itself: a value of the IR, and what builds it.
Value = Any
Builder = Any


def scores_of_four(columns: int) -> Any:
    """A function (matrix float32[N, columns], r0, r1, r2, r3, user float32[columns]): 4 scores.

    Each is what ``np.add.reduce(matrix[r] * user)`` is, to the bit: numpy's pairwise sum, which
    for 8 to 128 numbers is 8 sums of every 8th, added in pairs, and then the rest one by one.
    """

    def score(context: Any, matrix: Any, r0: Any, r1: Any, r2: Any, r3: Any, user: Any) -> Any:
        signature = types.UniTuple(types.float32, 4)(matrix, r0, r1, r2, r3, user)

        def build(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
            base, of_user = (_data(context, b, signature, arguments, i) for i in (0, 5))
            width = ir.Constant(_I64, columns)
            rows = [b.gep(base, [b.mul(r, width)]) for r in arguments[1:5]]
            total = _pairwise(b, rows, of_user, 0, columns)
            # numpy begins with 0, which a sum of negative zeros shows.
            total = b.fadd(total, ir.Constant(_F32X4, [0.0] * 4))
            return _four(context, b, signature, total)

        return signature, build

    return intrinsic(score)


def bounds_of_four(width: int) -> Any:
    """A function (codes int8[N, width], scales float32[N, 2], row, v int16[width], t, e, u_last):
    4 upper bounds of rows row to row + 3, as serendip.retrieval.codes has them. Width is a multiple
    of 16; the sum of products must fit 32 bits.
    """

    def bound(
        context: Any, codes: Any, scales: Any, row: Any, v: Any, t: Any, e: Any, last: Any
    ) -> Any:
        signature = types.UniTuple(types.float32, 4)(codes, scales, row, v, t, e, last)

        def build(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
            base, of_scales, of_v = (_data(context, b, signature, arguments, i) for i in (0, 1, 3))
            row, (t, e, last) = arguments[2], (_splat(b, a) for a in arguments[4:7])
            rows = [
                b.gep(base, [b.mul(b.add(row, ir.Constant(_I64, i)), ir.Constant(_I64, width))])
                for i in range(4)
            ]
            sums: list[Value] = []
            for at in range(0, width, 16):
                v = b.sext(_load(b, of_v, at, _I16X16, 2), _I32X16)
                parts = []
                for r in rows:
                    products = b.mul(b.sext(_load(b, r, at, _I8X16, 1), _I32X16), v)
                    # In this form LLVM sees a multiply-add of 16-bit pairs.
                    parts.append(
                        b.add(
                            _shuffle(b, products, products, range(0, 16, 2)),
                            _shuffle(b, products, products, range(1, 16, 2)),
                        )
                    )
                sums = [b.add(s, p) for s, p in zip(sums, parts, strict=True)] if at else parts
            total = b.sitofp(_across(b, sums, b.add), _F32X4)
            both = _load(b, b.gep(of_scales, [b.mul(row, ir.Constant(_I64, 2))]), 0, _F32X8, 4)
            scale = _shuffle(b, both, both, range(0, 8, 2))
            of_last = _shuffle(b, both, both, range(1, 8, 2))
            bounds = b.fmul(scale, b.fadd(b.fmul(t, total), e))
            return _four(context, b, signature, b.fadd(bounds, b.fmul(of_last, last)))

        return signature, build

    return intrinsic(bound)


def prefetch(size: int) -> Any:
    """A function (array [N, w], row) that asks for the ``size`` bytes from a row on.

    The row may lie behind the array's end: what cannot be fetched is not.
    """

    def fetch(context: Any, array: Any, row: Any) -> Any:
        signature = types.void(array, row)

        def build(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
            of = context.make_array(signature.args[0])(context, b, value=arguments[0])
            start = b.bitcast(of.data, _I8.as_pointer())
            start = b.gep(start, [b.mul(arguments[1], b.extract_value(of.strides, 0))])
            kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
            call = b.module.declare_intrinsic("llvm.prefetch", [_I8.as_pointer()], kind)
            to_read, keep, data = (ir.Constant(_I32, flag) for flag in (0, 3, 1))
            for at in range(0, size, _LINE):
                b.call(call, [b.gep(start, [ir.Constant(_I32, at)]), to_read, keep, data])
            return context.get_dummy_value()

        return signature, build

    return intrinsic(fetch)


def _bits(context: Any, x: Any) -> Any:
    def build(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return b.bitcast(arguments[0], _I32)

    return types.uint32(types.float32), build


def _from_bits(context: Any, x: Any) -> Any:
    def build(context: Any, b: Builder, signature: Any, arguments: Sequence[Value]) -> Value:
        return b.bitcast(arguments[0], _F32)

    return types.float32(types.uint32), build


bits = intrinsic(_bits)  # of a float32, as uint32
from_bits = intrinsic(_from_bits)  # the other way round


def _pairwise(b: Builder, rows: Sequence[Value], user: Value, start: int, count: int) -> Value:
    """<4 x float>: sums of the products of columns [start, start + count), in numpy's order."""
    if count > _BLOCK:
        half = count // 2
        half -= half % 8
        return b.fadd(
            _pairwise(b, rows, user, start, half),
            _pairwise(b, rows, user, start + half, count - half),
        )
    whole = count - count % 8
    if whole:
        sums: list[Value] = []
        for at in range(start, start + whole, 8):
            u = _load(b, user, at, _F32X8, 4)
            products = [b.fmul(_load(b, row, at, _F32X8, 4), u) for row in rows]
            sums = [b.fadd(s, p) for s, p in zip(sums, products, strict=True)] if sums else products
        total = _across(b, sums, b.fadd)
    else:
        total = ir.Constant(_F32X4, [-0.0] * 4)
    for at in range(start + whole, start + count):
        u = b.load(b.gep(user, [ir.Constant(_I32, at)]), align=4)
        products = ir.Constant(_F32X4, ir.Undefined)
        for i, row in enumerate(rows):
            product = b.fmul(b.load(b.gep(row, [ir.Constant(_I32, at)]), align=4), u)
            products = b.insert_element(products, product, ir.Constant(_I32, i))
        total = b.fadd(total, products)
    return total


def _across(b: Builder, sums: Sequence[Value], add: Any) -> Value:
    """Of 4 vectors r of 8 each: ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))."""

    def in_pairs(x: Value, y: Value) -> Value:
        # Within halves of a register, so that it is one instruction.
        left, right = (0, 2, 8, 10, 4, 6, 12, 14), (1, 3, 9, 11, 5, 7, 13, 15)
        return add(_shuffle(b, x, y, left), _shuffle(b, x, y, right))

    halves = in_pairs(in_pairs(sums[0], sums[1]), in_pairs(sums[2], sums[3]))
    return add(_shuffle(b, halves, halves, range(4)), _shuffle(b, halves, halves, range(4, 8)))


def _shuffle(b: Builder, x: Value, y: Value, places: Sequence[int]) -> Value:
    mask = ir.Constant(ir.VectorType(_I32, len(places)), list(places))
    return b.shuffle_vector(x, y, mask)


def _splat(b: Builder, x: Value) -> Value:
    one = b.insert_element(ir.Constant(_F32X4, ir.Undefined), x, ir.Constant(_I32, 0))
    return _shuffle(b, one, one, (0, 0, 0, 0))


def _load(b: Builder, pointer: Value, at: int, kind: Any, align: int) -> Value:
    place = b.gep(pointer, [ir.Constant(_I32, at)])
    return b.load(b.bitcast(place, kind.as_pointer()), align=align)


def _data(context: Any, b: Builder, signature: Any, arguments: Sequence[Value], i: int) -> Value:
    return context.make_array(signature.args[i])(context, b, value=arguments[i]).data


def _four(context: Any, b: Builder, signature: Any, vector: Value) -> Value:
    each = [b.extract_element(vector, ir.Constant(_I32, i)) for i in range(4)]
    return context.make_tuple(b, signature.return_type, each)
