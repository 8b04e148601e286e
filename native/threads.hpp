// Work cut into parts, done by the threads that PyTorch already has.
#pragma once

#include <cstdint>
#include <functional>

namespace narrows {

// Calls work(begin, end) for consecutive parts of [0, count), of `part` each but the last, on as many threads as
// OpenMP gives this one, which is what torch.set_num_threads said once PyTorch has computed in it. What `work` throws is
// thrown when all are done. Which thread takes which part varies; the parts do not.
void parallel(std::int64_t count, std::int64_t part, const std::function<void(std::int64_t, std::int64_t)>& work);

}  // namespace narrows
