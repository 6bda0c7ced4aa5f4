// Streams and events of the stand-in: what is queued on a stream happens later, on a thread of its own.
//
// Who forgets to wait reads what is not there yet. A log of what was queued where, which memory it touches
// and who waits for whom lets tests find what only would have gone wrong on another day.
#pragma once

#include <c10/core/Stream.h>
#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>
#include <vector>

namespace standin {

constexpr int kDevices = 2;

// What happened, on which device and stream, and two numbers: address and bytes, or event and its version.
using Entry = std::tuple<std::string, int, int64_t, uint64_t, uint64_t>;

struct Log {
  std::mutex lock;
  std::atomic<bool> on{false};
  std::vector<Entry> entries;

  void add(const char* what, int device, int64_t stream, uint64_t first, uint64_t second) {
    if (!on) return;
    const std::lock_guard held(lock);
    entries.emplace_back(what, device, stream, first, second);
  }
  std::vector<Entry> take() {
    const std::lock_guard held(lock);
    return std::move(entries);
  }
};
inline Log& log_book() {
  static auto* book = new Log;
  return *book;
}

inline std::atomic<int> delay_us{0};

struct Queue {
  std::mutex lock;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  uint64_t queued = 0;
  uint64_t done = 0;
  bool started = false;

  void push(std::function<void()> task) {
    const std::lock_guard held(lock);
    tasks.push_back(std::move(task));
    ++queued;
    if (!started) std::thread([this] { work(); }).detach();
    started = true;
    changed.notify_all();
  }
  // At once when nothing is before it: streams that nobody uses need no thread.
  void push_or_run(const std::function<void()>& task) {
    if (idle())
      task();
    else
      push(task);
  }
  bool idle() {
    const std::lock_guard held(lock);
    return done == queued;
  }
  void drain() {
    std::unique_lock held(lock);
    const auto last = queued;
    changed.wait(held, [&] { return done >= last; });
  }
  void work() {
    std::unique_lock held(lock);
    for (;;) {
      changed.wait(held, [&] { return !tasks.empty(); });
      const auto task = std::move(tasks.front());
      tasks.pop_front();
      held.unlock();
      task();
      held.lock();
      ++done;
      changed.notify_all();
    }
  }
};

// Never destroyed: their threads outlive main.
inline std::mutex& queues_lock() {
  static auto* lock = new std::mutex;
  return *lock;
}
inline std::array<std::deque<Queue>, kDevices>& queues() {
  static auto* all = [] {
    auto* made = new std::array<std::deque<Queue>, kDevices>;
    for (auto& each : *made) each.emplace_back();
    return made;
  }();
  return *all;
}
inline Queue& queue(int device, int64_t stream) {
  const std::lock_guard held(queues_lock());
  return queues().at(device).at(stream);
}
inline int64_t new_queue(int device) {
  const std::lock_guard held(queues_lock());
  queues().at(device).emplace_back();
  return int64_t(queues().at(device).size()) - 1;
}
inline bool all_idle() {
  const std::lock_guard held(queues_lock());
  for (auto& device : queues())
    for (auto& each : device)
      if (!each.idle()) return false;
  return true;
}
inline void synchronize(int device) {
  size_t count = 0;
  {
    const std::lock_guard held(queues_lock());
    count = queues().at(device).size();
  }
  for (size_t stream = 0; stream < count; ++stream) {
    queue(device, stream).drain();
    log_book().add("sync", device, stream, 0, 0);
  }
}

inline thread_local std::array<int64_t, kDevices> current_stream{};

inline Queue& here(int device) { return queue(device, current_stream.at(device)); }

// Waits for what is queued on this thread's stream: what torch does next there, it does on this thread.
inline void catch_up(int device) { here(device).drain(); }

struct Event {
  static inline std::atomic<uint64_t> count{0};
  const uint64_t id = ++count;
  std::mutex lock;
  std::condition_variable changed;
  uint64_t scheduled = 0;
  uint64_t reached = 0;
  std::chrono::steady_clock::time_point when;

  uint64_t schedule() {
    const std::lock_guard held(lock);
    return ++scheduled;
  }
  uint64_t last() {
    const std::lock_guard held(lock);
    return scheduled;
  }
  void reach(uint64_t version) {
    const std::lock_guard held(lock);
    reached = std::max(reached, version);
    when = std::chrono::steady_clock::now();
    changed.notify_all();
  }
  void wait(uint64_t version) {
    std::unique_lock held(lock);
    changed.wait(held, [&] { return reached >= version; });
  }
  bool is_reached(uint64_t version) {
    const std::lock_guard held(lock);
    return reached >= version;
  }
};
using EventPtr = std::shared_ptr<Event>;

inline void record(void** handle, const c10::Stream& stream) {
  if (!*handle) *handle = new EventPtr(std::make_shared<Event>());
  const auto event = *static_cast<EventPtr*>(*handle);
  const auto version = event->schedule();
  log_book().add("record", stream.device_index(), stream.id(), event->id, version);
  queue(stream.device_index(), stream.id()).push_or_run([event, version] { event->reach(version); });
}
inline void block(void* handle, const c10::Stream& stream) {
  if (!handle) return;
  const auto event = *static_cast<EventPtr*>(handle);
  const auto version = event->last();
  log_book().add("wait", stream.device_index(), stream.id(), event->id, version);
  if (!event->is_reached(version))
    queue(stream.device_index(), stream.id()).push([event, version] { event->wait(version); });
}
inline void wait_for(void* handle) {
  if (!handle) return;
  const auto& event = *static_cast<EventPtr*>(handle);
  const auto version = event->last();
  event->wait(version);
  log_book().add("host", 0, 0, event->id, version);
}

// Memory that is given back while something is queued anywhere stays until nothing is: what is still written
// to it by mistake does not hurt the process.
struct Graveyard {
  std::mutex lock;
  std::vector<void*> waiting;

  void bury(void* data) {
    const std::lock_guard held(lock);
    waiting.push_back(data);
    if (!all_idle()) return;
    for (void* each : waiting) std::free(each);
    waiting.clear();
  }
};
inline Graveyard& graveyard() {
  static auto* made = new Graveyard;
  return *made;
}

// Host memory that copies of their own speed start from.
struct Pinned {
  std::mutex lock;
  std::map<uintptr_t, size_t> ranges;
  std::atomic<bool> possible{true};
  size_t bytes = 0;
  size_t peak = 0;

  void* take(size_t size) {
    void* data = std::malloc(size ? size : 1);
    const std::lock_guard held(lock);
    ranges[reinterpret_cast<uintptr_t>(data)] = size;
    bytes += size;
    peak = std::max(peak, bytes);
    return data;
  }
  void give_back(void* data) {
    {
      const std::lock_guard held(lock);
      const auto found = ranges.find(reinterpret_cast<uintptr_t>(data));
      bytes -= found->second;
      ranges.erase(found);
    }
    graveyard().bury(data);
  }
  bool has(const void* data) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    const std::lock_guard held(lock);
    auto found = ranges.upper_bound(address);
    if (found == ranges.begin()) return false;
    --found;
    return address < found->first + found->second;
  }
};
inline Pinned& pinned() {
  static auto* made = new Pinned;
  return *made;
}

// As when the device was loaded, for who comes next in this process.
inline void reset() {
  for (int device = 0; device < kDevices; ++device) synchronize(device);
  current_stream = {};
  delay_us = 0;
  log_book().on = false;
  log_book().take();
  const std::lock_guard held(pinned().lock);
  pinned().possible = true;
  pinned().peak = pinned().bytes;
}

}  // namespace standin
