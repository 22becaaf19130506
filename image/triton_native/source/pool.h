// A few threads that work on one job after another, with little time between two jobs.
//
// Threads spin only between the jobs of one call (`open` to `close`), for a bounded time; before
// and after it they sleep and cost nothing. A job's parts are claimed one by one, so a thread that
// the system has not woken yet, or has taken off its core, delays nobody.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace native {

class Pool {
 public:
  // The caller is one of the threads.
  explicit Pool(int threads) {
    workers_.reserve(threads);
    try {
      while (static_cast<int>(workers_.size()) + 1 < threads)
        workers_.emplace_back([this] { work(); });
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

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

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
    // Number of the job, its parts, and the next part to be claimed.
    claims_.store(epoch_ << 40 | static_cast<uint64_t>(parts) << 20);
    if (sleeping_.load() != 0) wake();
    claim_all();
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

  void claim_all() {
    uint64_t seen = claims_.load();
    while ((seen & kMask) < (seen >> 20 & kMask)) {
      if (!claims_.compare_exchange_weak(seen, seen + 1)) continue;
      // The job cannot change while a claimed part of it is not done.
      function_(context_, static_cast<int>(seen & kMask));
      left_.fetch_sub(1, std::memory_order_release);
      seen = claims_.load();
    }
  }

  void work() {
    for (;;) {
      const uint32_t ticket = wakes_.load();
      int spins = 0;
      uint64_t last = claims_.load();
      while (open_.load() && spins < kSpins && !ending_.load()) {
        claim_all();
        const uint64_t now = claims_.load(std::memory_order_relaxed);
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

  std::vector<std::thread> workers_;
  uint64_t epoch_ = 0;
  const void* context_ = nullptr;
  void (*function_)(const void*, int) = nullptr;
  alignas(64) std::atomic<uint64_t> claims_{0};
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<uint32_t> wakes_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> open_{false};
  std::atomic<bool> ending_{false};
};

}  // namespace native
