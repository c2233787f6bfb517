// The records of a run's miners by their numbers. Numbers are given out once and in order; the record of one that is long gone
// can be forgotten, its number is not given again. Iterating goes over the records there are, by number.
// Not thread-safe: part of the orchestrator's state.
#pragma once

#include <map>
#include <ranges>
#include <utility>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"

namespace tessera::core {

template <class Record>
class MinerTable {
 public:
  // The number that the next miner gets; what is below it was given.
  MinerIndex next() const { return next_; }
  size_t size() const { return records_.size(); }
  bool has(MinerIndex miner) const { return records_.count(miner) > 0; }

  // There must be one.
  Record& operator[](MinerIndex miner) { return *checked(records_.find(miner)); }
  const Record& operator[](MinerIndex miner) const { return *checked(records_.find(miner)); }
  const Record& at(MinerIndex miner) const { return (*this)[miner]; }
  // Null: there is none (any more).
  const Record* find(MinerIndex miner) const {
    const auto found = records_.find(miner);
    return found == records_.end() ? nullptr : &found->second;
  }

  Record& add() {
    Record& record = records_[next_];
    record.index = next_++;
    return record;
  }
  void forget(MinerIndex miner) { records_.erase(miner); }

  auto begin() { return std::views::values(records_).begin(); }
  auto end() { return std::views::values(records_).end(); }
  auto begin() const { return std::views::values(records_).begin(); }
  auto end() const { return std::views::values(records_).end(); }

  template <class A>
  void fields(A& a) {
    a("next", next_)("records", records_);
  }

 private:
  template <class Iterator>
  auto* checked(Iterator found) const {
    TESSERA_CHECK(found != records_.end());
    return &found->second;
  }

  MinerIndex next_ = 0;
  std::map<MinerIndex, Record> records_;
};

}  // namespace tessera::core
