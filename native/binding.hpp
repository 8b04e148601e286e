// Weights and histories as Python hands them over: checked, and kept alive as long as they are bound.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.hpp"
#include "network.hpp"

namespace narrows {

using Bytes1 = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes3 = nb::ndarray<std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Tables = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// "float32", "bf16", "fp8_entries" or "fp4_keys"; features; of them RoPE's.
using FormatArguments = std::tuple<std::string, std::int64_t, std::int64_t>;
RowFormat row_format(const FormatArguments& from);

// A packed weight in memory that Python owns.
struct Matrix {
    Packed packed;
    nb::object values, scales;

    Matrix(const std::string& format, std::int64_t rows, std::int64_t columns, nb::object values, nb::object scales);
};

// Why no network of these sizes can be bound, by the first of the limits that they go beyond.
std::optional<std::string> why_not(nb::dict config);

// A network whose weights are Python's.
struct Network {
    BoundNetwork bound;
    std::vector<nb::object> owners;

    // Sizes by name, matrices and arrays by the names of their tensors; experts that may be asked for ahead (Prefetch),
    // in bytes, or 0.
    Network(nb::dict config, nb::dict matrices, nb::dict arrays, std::int64_t prefetch);
};

// A history whose memory is Python's.
struct History {
    HistoryView view;
    std::vector<nb::object> owners;

    // Of every layer (window, compressor, indexer, entries, keys): uint8 [slots, capacity, bytes] and
    // [blocks, block, bytes], None for what it has not; tables [slots, most].
    History(nb::list layers, const FormatArguments& entries, const FormatArguments& keys, nb::object tables);
};

}  // namespace narrows
