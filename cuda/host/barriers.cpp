#include <bit>
#include <cstdlib>
#include <cstring>
#include <string>

#include "block.h"
#include "sanitizers.h"

namespace lec7::host {
namespace {

bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string place(const Where& where) { return std::string(where.file_name()) + ":" + std::to_string(where.line()); }

// A barrier that is left out, to see whether somebody notices: LEC7_LEAVE_OUT=gemm.cu:91 (tests/cuda/leave_out.py).
bool left_out(const Where& where) {
  static const char* const which = std::getenv("LEC7_LEAVE_OUT");
  return which != nullptr && place(where).ends_with(std::string("/") + which);
}

// Those who come to a barrier among `expected` of the worker's threads, from the first on.
void meet(Barrier& barrier, std::size_t first, std::size_t expected, State waiting, Where where) {
  FiberThread& me = self();
  me.where = where;
  if (barrier.arrived == 0) barrier.where = where;
  if (!same(barrier.where, where)) {
    die(("meets another barrier than the threads that wait at " + place(barrier.where)).c_str(), where);
  }
  char* const token = &barrier.tokens[barrier.turn & 1];
  before(token);
  if (++barrier.arrived < expected) {
    me.state = waiting;
    wait();
  } else {
    barrier.arrived = 0;
    ++barrier.turn;
    for (std::size_t i = first; i < first + expected; ++i) {
      if (worker->threads[i].state == waiting) worker->threads[i].state = State::ready;
    }
    if (schedule().shuffle) wait();
  }
  after(token);
}

// The meeting that this lane takes part in: one that has begun with this mask, or a free one. Lanes that wait for this
// one in another meeting, but that it would wait for in its own, would wait forever.
Meeting& meeting_with(unsigned mask, unsigned expected, std::size_t bytes, Where where) {
  Warp& warp = self().block->warps[self().linear / kWarp];
  Meeting* free = nullptr;
  for (Meeting& meeting : warp) {
    if (meeting.reading == 0) free = &meeting;
    if (!meeting.open() || (meeting.mask >> lane() & 1) == 0 || (meeting.arrived & mask) == 0) continue;
    const char* const differs = meeting.mask != mask          ? "with another mask than"
                                : meeting.bytes != bytes      ? "of another kind than"
                                : !same(meeting.where, where) ? "at another line than"
                                                              : nullptr;
    if (differs == nullptr) return meeting;
    die((std::string("calls a warp operation ") + differs + " the lanes that wait at " + place(meeting.where)).c_str(),
        where);
  }
  if (free == nullptr) free = &warp.emplace_back();
  free->mask = mask;
  free->expected = expected;
  free->arrived = 0;
  free->bytes = bytes;
  free->where = where;
  return *free;
}

Meeting& meet_lanes(unsigned mask, const Slot& value, std::size_t bytes, bool orders, Where where) {
  FiberThread& me = self();
  const unsigned mine = lane(), base = me.linear - mine, n = volume(worker->launch->block);
  if ((mask >> mine & 1) == 0) die("calls a warp operation with a mask without its own lane", where);
  if (me.meeting != nullptr) me.meeting->reading &= ~(1u << mine);
  const unsigned present = n - base >= kWarp ? ~0u : (1u << (n - base)) - 1;
  Meeting& meeting = meeting_with(mask, mask & present, bytes, where);
  me.meeting = &meeting;
  me.where = where;
  std::memcpy(meeting.slots[mine], value, sizeof value);
  if (orders) before(&meeting);
  meeting.arrived |= 1u << mine;
  meeting.reading |= 1u << mine;
  if (meeting.arrived != meeting.expected) {
    me.state = State::warp;
    wait();
  } else {
    for (unsigned rest = meeting.expected & ~(1u << mine); rest != 0; rest &= rest - 1) {
      worker->threads[me.block->first + base + static_cast<unsigned>(std::countr_zero(rest))].state = State::ready;
    }
    if (schedule().shuffle) wait();
  }
  if (orders) after(&meeting);
  return meeting;
}

}  // namespace

void sync_threads(Where where) {
  if (left_out(where)) return;
  const Block& block = *current->block;
  const unsigned n = volume(worker->launch->block);
  if (block.live != n) die("waits at a barrier after a thread of its block returned", where);
  meet(current->block->barrier, block.first, n, State::block_barrier, where);
}

void sync_grid(Where where) {
  if (left_out(where)) return;
  Worker& w = *worker;
  if (!w.launch->cooperative) die("waits for the grid in a launch that is not cooperative", where);
  if (w.live != w.threads.size()) die("waits for the grid after a thread of it returned", where);
  meet(w.grid_barrier, 0, w.threads.size(), State::grid_barrier, where);
}

void sync_warp(unsigned mask, Where where) {
  if (!left_out(where)) meet_lanes(mask, Slot{}, 0, true, where);
}

Exchange exchange_slots(unsigned mask, const Slot& mine, std::size_t bytes, Where where) {
  const Meeting& meeting = meet_lanes(mask, mine, bytes, false, where);
  return {meeting.expected, meeting.slots};
}

}  // namespace lec7::host
