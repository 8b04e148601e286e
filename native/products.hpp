// Products of a phase, shared out among a team.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "packed.hpp"
#include "team.hpp"

namespace narrows {

// Rows of BF16 inputs, or of floats that are taken as they are.
struct Inputs {
    const std::uint16_t* rounded = nullptr;
    const float* exact = nullptr;
    std::int64_t apart = 0;               // from row to row
    const std::int32_t* rows = nullptr;   // which of them; null: all in order
};

// y[r] = w · x[r] for `count` rows. With `also` y becomes swiglu(w · x, also · x). Results are floats, or rounded.
struct Product {
    const Packed* w;
    Inputs x;
    std::int64_t count;
    float* y;                             // null where only `rounded` is wanted
    std::int64_t apart;
    const std::int32_t* rows = nullptr;   // where row r goes; null: in order
    std::uint16_t* rounded = nullptr;
    std::int64_t rounded_apart = 0;
    const Packed* also = nullptr;
    float limit = 0;
};

void products(Team& team, const Product* work, std::int64_t count);

inline void products(Team& team, std::initializer_list<Product> work) {
    products(team, work.begin(), static_cast<std::int64_t>(work.size()));
}

}  // namespace narrows
