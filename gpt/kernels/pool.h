// Threads that share the pieces of a product, for microseconds at a time.
#pragma once
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

class Pool {
 public:
  // f(i) for i in [0, n), on up to `threads` threads; the caller is one of
  // them. If another caller has the pool, this one works alone.
  template <class F>
  void run(int n, int threads, F&& f) {
    if (n <= 1 || threads <= 1 || !owner_.try_lock()) {
      for (int i = 0; i < n; i++) f(i);
      return;
    }
    try {
      for (; workers_ < threads - 1; workers_++)
        std::thread([this] { loop(); }).detach();
    } catch (const std::system_error&) {  // No more threads: go on without.
    }
    call_ = [&f](int i) { f(i); };
    pending_ = n;
    range_ = ++epoch_ << 40 | (uint64_t)n;
    if (sleepers_) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work(true);
    for (int spins = 1; pending_; spins++) {
      pause();
      if (spins % 0x4000 == 0) std::this_thread::yield();
    }
    owner_.unlock();
  }

 private:
  // About 0.1 ms: longer than the gap between two blocks of decode steps.
  static constexpr int SPINS = 4000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  // range_: epoch (24 bits) | first (20) | end (20) of what nobody has taken.
  // The caller takes from the front and the workers from the back, so that a
  // core sees the same weights again, and whoever is free takes the rest of a
  // thread that the system has stopped.
  static int first(uint64_t range) { return (range >> 20) & 0xFFFFF; }
  static int end(uint64_t range) { return range & 0xFFFFF; }

  bool work(bool front) {
    bool any = false;
    for (uint64_t range = range_; first(range) < end(range); range = range_) {
      int i = front ? first(range) : end(range) - 1;
      uint64_t left = front ? range + (1ull << 20) : range - 1;
      if (!range_.compare_exchange_weak(range, left)) continue;
      call_(i);
      pending_--;
      any = true;
    }
    return any;
  }

  void loop() {
    for (;;) {
      for (int spins = 0; spins < SPINS; spins++) {
        if (work(false)) spins = 0;
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_++;
      wake_.wait(lock, [&] { return first(range_) < end(range_); });
      sleepers_--;
    }
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_;
  int workers_ = 0;
  uint64_t epoch_ = 0;
  std::function<void(int)> call_;
  alignas(64) std::atomic<uint64_t> range_{0};
  alignas(64) std::atomic<int> pending_{0};
  alignas(64) std::atomic<int> sleepers_{0};
};

// Of this process; a forked child gets a new one, without threads.
static Pool* pool = [] {
  pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  return new Pool;
}();
