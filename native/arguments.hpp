// How arguments come from Python, and what is refused.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "kernels.hpp"

namespace nb = nanobind;

namespace narrows {

using In1 = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using In2 = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using In3 = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Out1 = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Out3 = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using OutRows = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Integers1 = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers2 = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The kernels of the instruction set in use.
const Kernels& k();

constexpr int MOST_ITERATIONS = 10'000;  // of Sinkhorn's: its gradient keeps them all

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("shapes do not fit: ") + what);
}

// What is wrong with numbers, in a sentence.
inline void refuse_if(bool wrong, const char* what) {
    if (wrong) throw std::invalid_argument(what);
}

// A tensor that lies at any byte, as views of a file may, is refused: what compilers make of loops counts on numbers that
// lie at multiples of their size.
template <typename Array>
void aligned(const Array& array, const char* name, std::size_t bytes = sizeof(typename Array::Scalar)) {
    if (reinterpret_cast<std::uintptr_t>(array.data()) % bytes != 0)
        throw std::invalid_argument("an address is no multiple of " + std::to_string(bytes) + ": " + name);
}

template <typename Array>
void is(const Array& array, std::initializer_list<std::int64_t> shape, const char* name) {
    std::size_t i = 0;
    for (std::int64_t size : shape) require(static_cast<std::int64_t>(array.shape(i++)) == size, name);
    aligned(array, name);
}

inline void require_iterations(int iterations) {
    refuse_if(iterations < 1 || iterations > MOST_ITERATIONS, "iterations must be from 1 to 10,000");
}

// first .. last of a window of so many rows; none where last is the one before first.
inline void require_window(std::int64_t first, std::int64_t last, std::int64_t rows) {
    refuse_if(first < 0 || first > rows || last < -1 || last >= rows, "first and last must be rows of the window");
}

}  // namespace narrows
