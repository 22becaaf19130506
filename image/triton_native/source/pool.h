// A few threads that work on one job after another, with little time between two jobs.
//
// Threads spin only between the jobs of one call (`open` to `close`), for a bounded time; before
// and after it they sleep and cost nothing. Each thread has a share of a job's parts, neighbours, so
// that it can fetch what it will need next. Parts are claimed one by one, of the own share and then
// of the others', so a thread that the system has not woken yet, or has taken off its core, delays
// nobody.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

namespace native {

class Pool {
 public:
  // The caller is one of the threads.
  explicit Pool(int threads) : threads_(threads), shares_(new Share[threads]) {
    workers_.reserve(threads);
    try {
      for (int thread = 1; thread < threads; ++thread)
        workers_.emplace_back([this, thread] { work(thread); });
    } catch (const std::system_error&) {
      // The system gives no more threads: fewer do the same work.
    }
    for (auto& worker : workers_) pthread_setname_np(worker.native_handle(), "native-step");
  }

  ~Pool() {
    ending_.store(true);
    wake();
    for (auto& worker : workers_) worker.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // The thread in whose share a part is, and the first part of a share.
  int owner(int part, int parts) const {
    return static_cast<int>(((part + 1LL) * threads_ - 1) / parts);
  }
  int first_of(int thread, int parts) const {
    return static_cast<int>(static_cast<int64_t>(thread) * parts / threads_);
  }

  void open() {
    open_.store(true);
    wake();
  }

  void close() { open_.store(false); }

  // Call body(part) for each part; return when all are done.
  template <class Body>
  void run(int parts, const Body& body) {
    if (parts <= 0) return;
    if (workers_.empty() || parts == 1) {
      for (int part = 0; part < parts; ++part) body(part);
      return;
    }
    context_ = &body;
    function_ = [](const void* context, int part) { (*static_cast<const Body*>(context))(part); };
    left_.store(parts, std::memory_order_relaxed);
    ++epoch_;
    for (int thread = 0; thread < threads_; ++thread)
      shares_[thread].claims.store(epoch_ << 40 |
                                   static_cast<uint64_t>(first_of(thread + 1, parts)) << 20 |
                                   static_cast<uint64_t>(first_of(thread, parts)));
    if (sleeping_.load() != 0) wake();
    claim_all(0);
    int spins = 0;
    while (left_.load(std::memory_order_acquire) != 0) pause(++spins);
  }

 private:
  static constexpr uint64_t kMask = (1u << 20) - 1;
  static constexpr int kSpins = 20000;  // about 0.3 ms

  static void pause(int spins) {
    if (spins % 2000 == 0)
      sched_yield();
    else
      __builtin_ia32_pause();
  }

  // The parts of one thread that nobody has claimed yet.
  struct alignas(64) Share {
    std::atomic<uint64_t> claims{0};  // number of the job, end of what is left, next part
  };

  static int next_of(uint64_t claims) { return static_cast<int>(claims & kMask); }
  static int end_of(uint64_t claims) { return static_cast<int>(claims >> 20 & kMask); }

  void claim_all(int thread) {
    for (int other = 0; other < threads_; ++other) {
      std::atomic<uint64_t>& claims = shares_[(thread + other) % threads_].claims;
      uint64_t seen = claims.load();
      while (next_of(seen) < end_of(seen)) {
        // From the front of the own share, as its owner fetches ahead, and from the end of others'.
        const uint64_t without = other == 0 ? seen + 1 : seen - (uint64_t{1} << 20);
        if (!claims.compare_exchange_weak(seen, without)) continue;
        // The job cannot change while a claimed part of it is not done.
        function_(context_, other == 0 ? next_of(seen) : end_of(without));
        left_.fetch_sub(1, std::memory_order_release);
        seen = claims.load();
      }
    }
  }

  void work(int thread) {
    const std::atomic<uint64_t>& claims = shares_[thread].claims;
    for (;;) {
      const uint32_t ticket = wakes_.load();
      int spins = 0;
      uint64_t last = claims.load();
      while (open_.load() && spins < kSpins && !ending_.load()) {
        claim_all(thread);
        const uint64_t now = claims.load(std::memory_order_relaxed);
        spins = now == last ? spins + 1 : 0;
        last = now;
        pause(spins + 1);
      }
      if (ending_.load()) return;
      sleeping_.fetch_add(1);
      syscall(SYS_futex, &wakes_, FUTEX_WAIT_PRIVATE, ticket, nullptr, nullptr, 0);
      sleeping_.fetch_sub(1);
    }
  }

  void wake() {
    wakes_.fetch_add(1);
    syscall(SYS_futex, &wakes_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

  const int threads_;
  const std::unique_ptr<Share[]> shares_;
  std::vector<std::thread> workers_;
  uint64_t epoch_ = 0;
  const void* context_ = nullptr;
  void (*function_)(const void*, int) = nullptr;
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<uint32_t> wakes_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> open_{false};
  std::atomic<bool> ending_{false};
};

}  // namespace native
