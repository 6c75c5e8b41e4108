// Threads that share out the samples of one call.
//
// A call lasts tens of microseconds, as long as it takes to wake a sleeping thread. So a helper that
// has run out of work looks out for more for a while, as those of OpenMP do, giving way to whoever
// else wants the core, and only then goes to sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

namespace diffcontrol {

// Memory of one thread, aligned to a cache line, that only grows.
class Memory {
 public:
  ~Memory() { std::free(data_); }
  void* of(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, size_);
      if (!data_) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

// Groups of samples, handed to whichever thread asks next. It outlives the call, for helpers that
// come when everything is done: they find nothing left and touch nothing else.
struct Work {
  std::atomic<int64_t> next{0}, done{0};
  std::atomic<bool> failed{false};
  std::atomic<int> wanted{0};  // helpers
  int64_t groups = 0;
  std::function<void(int64_t, void*)> run;
  int64_t scratch_bytes = 0;

  void help() {
    thread_local Memory memory;
    for (int64_t group; (group = next.fetch_add(1)) < groups;) {
      try {
        run(group, memory.of(scratch_bytes));
      } catch (...) {
        failed = true;
      }
      done.fetch_add(1, std::memory_order_release);
    }
  }
};

class Helpers {
 public:
  // The helpers of this process; they are never joined, since threads may outlive static objects.
  static Helpers& all() {
    static Helpers* helpers = new Helpers;
    return *helpers;
  }

  // Asks `wanted` helpers, started when first asked for, to join in; returns at once.
  void ask(std::shared_ptr<Work> work, int wanted) {
    work->wanted = wanted;
    bool asleep;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; started_ < wanted; ++started_) std::thread([this] { serve(); }).detach();
      current_ = std::move(work);
      number_.fetch_add(1, std::memory_order_release);
      asleep = sleeping_ > 0;
    }
    if (asleep) wake_.notify_all();
  }

 private:
  static constexpr std::chrono::microseconds PATIENCE{200};

  void serve() {
    for (uint64_t seen = 0;;) {
      const auto late = std::chrono::steady_clock::now() + PATIENCE;
      while (number_.load(std::memory_order_acquire) == seen &&
             std::chrono::steady_clock::now() < late)
        std::this_thread::yield();
      std::shared_ptr<Work> work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleeping_;
        wake_.wait(lock, [&] { return number_.load() != seen; });
        --sleeping_;
        seen = number_.load();
        work = current_;
      }
      if (work->wanted.fetch_sub(1) > 0) work->help();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> number_{0};
  std::shared_ptr<Work> current_;
  int started_ = 0, sleeping_ = 0;
};

}  // namespace diffcontrol
