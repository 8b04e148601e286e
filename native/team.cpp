#include "team.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace narrows {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)
static_assert(sizeof(std::atomic<std::uint32_t>) == 4);

void sleep_while(std::atomic<std::uint32_t>& word, std::uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<std::uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE_PRIVATE, MOST_THREADS, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<std::uint32_t>&, std::uint32_t) { std::this_thread::yield(); }
void wake_all(std::atomic<std::uint32_t>&) {}
#endif

// At a barrier others are mostly a few microseconds away: then to sleep costs more than to look again and again. But where
// two of us share a core, which the system may leave so for seconds, every look keeps the core from who is waited for. So
// there are few looks after waits that were too long for them, and more and more after others.
constexpr int MOST_SPINS = 10'000, LEAST_SPINS = 100;

// Between two steps of a decode the interpreter works for some hundred microseconds.
constexpr auto SPIN_BETWEEN = std::chrono::microseconds(300);

}  // namespace

class Pool {
   public:
    std::mutex turn;

    void run(int threads, const std::function<void(Team&)>& work) {
        threads = make(std::clamp(threads, 1, MOST_THREADS) - 1) + 1;
        if (threads > 1) {
            work_ = &work;
            {
                std::lock_guard<std::mutex> lock(mutex_);
                const std::uint64_t number = job_.load(std::memory_order_relaxed) / MEMBERS + 1;
                job_.store(number * MEMBERS + threads, std::memory_order_release);
            }
            for (int i = 0; i < threads - 1; ++i)
                if (workers_[i].sleeps) workers_[i].wake.notify_one();
        }
        Team team(*this, 0, threads);
        work(team);
        if (threads > 1) team.barrier();  // nobody still reads `work`
    }

    // `members` is the caller's own count: once the last of them is here, the next job may begin before others look.
    void meet(int members) {
        const std::uint32_t before = generation_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            counter_.store(0, std::memory_order_relaxed);
            arrived_.store(0, std::memory_order_relaxed);
            // In one order with who goes to sleep: either it sees the next generation, or it is seen and woken.
            generation_.fetch_add(1, std::memory_order_seq_cst);
            if (asleep_.load(std::memory_order_seq_cst)) wake_all(generation_);
            return;
        }
        const int most = spins_.load(std::memory_order_relaxed);
        for (int spins = 0; spins < most; ++spins) {
            if (generation_.load(std::memory_order_acquire) != before) {
                if (most < MOST_SPINS) spins_.store(most + most / 16 + 1, std::memory_order_relaxed);
                return;
            }
            pause();
        }
        spins_.store(std::max(LEAST_SPINS, most / 2), std::memory_order_relaxed);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        while (generation_.load(std::memory_order_seq_cst) == before) sleep_while(generation_, before);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
    }

    std::int64_t next() { return counter_.fetch_add(1, std::memory_order_relaxed); }

   private:
    struct Worker {
        std::condition_variable wake;
        std::atomic<bool> sleeps{false};
    };

    // Sees to it that there are so many threads beside the caller; fewer where the system gives no more -> how many.
    int make(int workers) {
        // A thread joins with the job that is current when it is made, and waits for the next.
        while (static_cast<int>(workers_.size()) < workers) {
            const int index = static_cast<int>(workers_.size()) + 1;
            workers_.emplace_back();
            try {
                std::thread(&Pool::serve, this, &workers_.back(), index, job_.load(std::memory_order_acquire)).detach();
            } catch (const std::system_error&) {
                workers_.pop_back();
                break;
            }
        }
        return std::min(workers, static_cast<int>(workers_.size()));
    }

    void serve(Worker* self, int index, std::uint64_t seen) {
        for (;;) {
            seen = wait(*self, index, seen);
            const int members = static_cast<int>(seen % MEMBERS);
            Team team(*this, index, members);
            (*work_)(team);
            team.barrier();
        }
    }

    // -> the next job behind `seen` that this worker is a member of.
    std::uint64_t wait(Worker& self, int index, std::uint64_t seen) {
        const auto mine = [&](std::uint64_t job) { return job != seen && index < static_cast<int>(job % MEMBERS); };
        const auto until = std::chrono::steady_clock::now() + SPIN_BETWEEN;
        for (;;) {
            std::uint64_t job = seen;
            for (int spins = 0; spins < 64 && job == seen; ++spins) {
                job = job_.load(std::memory_order_acquire);
                pause();
            }
            if (mine(job)) return job;
            // Who is not wanted sleeps at once: a job of few threads is not to wait for a core that looks for work.
            if (job != seen || std::chrono::steady_clock::now() >= until) break;
        }
        std::uint64_t job = seen;
        std::unique_lock<std::mutex> lock(mutex_);
        self.sleeps.store(true, std::memory_order_relaxed);
        self.wake.wait(lock, [&] { return mine(job = job_.load(std::memory_order_acquire)); });
        self.sleeps.store(false, std::memory_order_relaxed);
        return job;
    }

    std::mutex mutex_;
    // The number of the job and, in its last digits, of its members: a thread that comes late to a job without it must
    // not read the next one's.
    static constexpr std::uint64_t MEMBERS = 1024;
    std::atomic<std::uint64_t> job_{0};
    std::atomic<std::uint32_t> generation_{0};
    std::atomic<int> arrived_{0}, asleep_{0}, spins_{MOST_SPINS};
    std::atomic<std::int64_t> counter_{0};
    const std::function<void(Team&)>* work_ = nullptr;
    std::deque<Worker> workers_;  // where they are made they stay
};

namespace {

// Never destroyed: its threads may still wait when the process ends. A forked child has none of them: it gets a pool of
// its own. Who forks waits until no step is under way, whose memory would be the child's as it was just then.
Pool* pool = nullptr;
std::once_flag made;

Pool& the_pool() {
    std::call_once(made, [] {
        pool = new Pool;
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork([] { pool->turn.lock(); }, [] { pool->turn.unlock(); }, [] { pool = new Pool; });
#endif
    });
    return *pool;
}

}  // namespace

void Team::barrier() {
    if (count_ > 1) pool_.meet(count_);
}

std::int64_t Team::next() { return pool_.next(); }

namespace {

std::atomic<std::thread::id> rests;  // who has called `rest`

}  // namespace

void rest() {
    if (resting()) return;
    the_pool().turn.lock();
    rests = std::this_thread::get_id();
}

bool resting() { return rests.load() == std::this_thread::get_id(); }

Turn::Turn() : pool_(the_pool()), lock_(pool_.turn) {}

void together(const Turn& turn, int threads, const std::function<void(Team&)>& work) { turn.pool_.run(threads, work); }

}  // namespace narrows
