// Attention's arguments, checked, and its tiles, done by several threads.
#pragma once

#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>

#include "arguments.hpp"

namespace narrows {

void attention(In3 q, In2 window, Integers1 first, Integers1 last, Integers2 tiles, std::optional<In2> storage,
               std::optional<Integers2> table, std::int64_t block, std::optional<Integers1> visible,
               std::optional<Integers2> selected, In1 sink, Out3 out);

void attention_gradient(In3 q, In2 window, Integers1 first, Integers1 last, Integers2 tiles,
                        std::optional<In2> storage, std::optional<Integers2> table, std::int64_t block,
                        std::optional<Integers1> visible, std::optional<Integers2> selected, In1 sink, In3 by_out,
                        Out3 by_q, Out2 by_window, std::optional<Out2> by_storage, Out1 by_sink);

}  // namespace narrows
