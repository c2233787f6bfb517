// Measures how far honest engines are apart on this machine: another run, other thread counts, other devices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::apps {

struct CalibrateOptions {
  std::string config;                   // the run's YAML
  std::vector<std::string> overrides;
  std::vector<std::string> devices;     // the first one does the work, all of them check it
  std::vector<uint32_t> threads;        // of the CPU; the first one does the work
  uint32_t steps = 4;
  bool json = false;
};

// Prints the figures and the thresholds that they propose; the exit code.
int calibrate(const CalibrateOptions& options);

}  // namespace tessera::apps
