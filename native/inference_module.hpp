// What inference adds to the Python module: weights bound once, histories, steps, and the ops for themselves.
#pragma once

#include <nanobind/nanobind.h>

namespace narrows {

void define_inference(nanobind::module_& m);

}  // namespace narrows
