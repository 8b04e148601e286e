// A small pool of threads that run one function together, and wait for each other inside it.
//
// A step of the network is some hundred short phases. Threads that enter it together and meet at barriers pay less for
// each than a pool that is handed every phase anew: a barrier of two threads is a fraction of a microsecond.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>

namespace narrows {

class Pool;

// One thread's place in what the pool runs. All threads call the same methods in the same order.
class Team {
   public:
    Team(Pool& pool, int index, int count) : pool_(pool), index_(index), count_(count) {}

    int index() const { return index_; }
    int count() const { return count_; }

    // All arrive before any goes on.
    void barrier();

    // Calls work(i) for every i below `items`, whoever is free taking the next; all are done when it returns.
    template <typename Work>
    void each(std::int64_t items, const Work& work) {
        if (items == 1 || count_ == 1) {
            if (index_ == 0)
                for (std::int64_t i = 0; i < items; ++i) work(i);
        } else {
            for (;;) {
                const std::int64_t i = next();
                if (i >= items) break;
                work(i);
            }
        }
        barrier();
    }

   private:
    std::int64_t next();

    Pool& pool_;
    int index_, count_;
};

// The right to use the pool, and what belongs to it: one step at a time, whoever calls. A fork waits for its turn too, so
// that a child never inherits a step half done.
class Turn {
   public:
    Turn();

   private:
    friend void together(const Turn&, int, const std::function<void(Team&)>&);

    Pool& pool_;
    std::unique_lock<std::mutex> lock_;
};

// Waits for the step under way, and lets none begin after it: for the end of the process, whose other threads must not come
// back from a step into an interpreter that is gone.
void rest();

// Whether this thread has called `rest`, and would wait for itself. Others wait for their turn until the process is gone.
bool resting();

// Calls work(team) on `threads` threads, the caller's among them. Threads are made when they are first wanted, wait
// for more work in a loop for a fraction of a millisecond and then asleep, and are made anew in a forked child. `work`
// may not throw.
void together(const Turn& turn, int threads, const std::function<void(Team&)>& work);

// More threads than this are not made, whatever is asked for.
constexpr int MOST_THREADS = 256;

}  // namespace narrows
