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

inline void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("shapes do not fit: ") + what);
}

// A tensor that lies at any byte, as views of a file may, is refused: what compilers make of loops counts on numbers that
// lie at multiples of their size.
template <typename Array>
void aligned(const Array& array, const char* name, std::size_t bytes = sizeof(typename Array::Scalar)) {
    require(reinterpret_cast<std::uintptr_t>(array.data()) % bytes == 0, name);
}

template <typename Array>
void is(const Array& array, std::initializer_list<std::int64_t> shape, const char* name) {
    std::size_t i = 0;
    for (std::int64_t size : shape) require(static_cast<std::int64_t>(array.shape(i++)) == size, name);
    aligned(array, name);
}

// first .. last of a window of so many rows; none where last is the one before first.
inline void require_window(std::int64_t first, std::int64_t last, std::int64_t rows) {
    require(0 <= first && first <= rows && -1 <= last && last < rows, "first and last are rows of the window");
}

}  // namespace narrows
