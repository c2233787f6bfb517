// The kinds of value that only a scenario has.
#pragma once

#include <yaml-cpp/yaml.h>

#include <string>
#include <vector>

#include "config/value.h"
#include "tessera/config/scenario.h"

namespace tessera::config {

std::string type_of(const std::vector<Fault>*);
Status read_value(const YAML::Node& node, std::vector<Fault>* target);
std::string write_value(const std::vector<Fault>* target);

// Every range of one fault.
Status validate(const Fault& fault);

}  // namespace tessera::config
