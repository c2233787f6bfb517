// Who gets the next microbatch: interleaved weighted round robin over measured speed and queue
// depth (as in SWARM). Pure: the caller measures.
//
// Every miner has a finish time on a virtual clock: what it was given so far, each microbatch at
// the miner's own time for one. The earliest to finish one more is picked. So miners of speed 1 : 2
// : 4 get 1, 2 and 4 of every 7, spread evenly.
#pragma once

#include <map>
#include <vector>

#include "tessera/base/ids.h"

namespace tessera::core {

struct RouteCandidate {
  MinerIndex miner = kNoMiner;
  double microbatch_ms = 0;  // measured time of one microbatch; 0: not measured yet
  double backlog = 0;        // microbatches that wait there
};

class Router {
 public:
  // A proposal does not bind when its miner's backlog takes more than this many times as long as
  // the best other miner needs for its backlog and the microbatch.
  static constexpr double kFarBehind = 3;

  // The miner that gets the next microbatch, and is charged for it; kNoMiner if there is none. A
  // miner that is not measured yet counts with the median of the others: its trial share. One that
  // comes anew, or again, is tried at once, and has no claim to what it missed.
  MinerIndex pick(const std::vector<RouteCandidate>& candidates);
  // Charges a miner for a microbatch that it was given for another reason.
  void charge(const RouteCandidate& given);

  static bool is_far_behind(const RouteCandidate& candidate,
                            const std::vector<RouteCandidate>& others);

  size_t remembered() const { return given_.size(); }

 private:
  double start_of(MinerIndex miner, double milliseconds) const;
  void charge(MinerIndex miner, double milliseconds);
  void forget_absent(const std::vector<RouteCandidate>& candidates);

  double clock_ = 0;                    // the latest finish of a microbatch given out
  std::map<MinerIndex, double> given_;  // miner -> its finish time
};

}  // namespace tessera::core
