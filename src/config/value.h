// The kinds of value a key can have. Of each kind: its name for people, how it is read strictly
// from YAML, and how it is written so that it reads back the same. A kind is a pointer to the
// variable, or a struct that holds one where several kinds share a C++ type.
//
// read_value() gives an error without file and key ("expected a whole number, got 'x'") and then
// leaves the variable alone.
#pragma once

#include <yaml-cpp/yaml.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/base/ids.h"
#include "tessera/base/status.h"
#include "tessera/config/daemon_config.h"

namespace tessera::config {

// A ratio: a number, or a number followed by x ("128x").
struct Ratio {
  double* target;
};
// A number of bytes, with an optional unit: KiB, MiB, GiB, TiB, KB, MB, GB, TB.
struct ByteCount {
  uint64_t* target;
};
// host:port, or [IPv6 address]:port.
struct Address {
  std::string* target;
  bool may_be_empty;
  bool may_have_port_0;
};
// A whole number, or "any".
struct NumberOrAny {
  std::optional<uint32_t>* target;
};
// One of a few names.
template <class T>
struct Choice {
  T* target;
  std::vector<std::pair<std::string, T>> names;
};

// A list of more items than this is refused.
inline constexpr size_t kMaxListItems = 4096;

std::string type_of(const bool*);
Status read_value(const YAML::Node& node, bool* target);
std::string write_value(const bool* target);

std::string type_of(const uint32_t*);
Status read_value(const YAML::Node& node, uint32_t* target);
std::string write_value(const uint32_t* target);

std::string type_of(const uint64_t*);
Status read_value(const YAML::Node& node, uint64_t* target);
std::string write_value(const uint64_t* target);

// Finite numbers only.
std::string type_of(const double*);
Status read_value(const YAML::Node& node, double* target);
std::string write_value(const double* target);

std::string type_of(const std::string*);
Status read_value(const YAML::Node& node, std::string* target);
std::string write_value(const std::string* target);

std::string type_of(const std::vector<uint32_t>*);
Status read_value(const YAML::Node& node, std::vector<uint32_t>* target);
std::string write_value(const std::vector<uint32_t>* target);

// A single number stands for a list of one.
std::string type_of(const std::vector<double>*);
Status read_value(const YAML::Node& node, std::vector<double>* target);
std::string write_value(const std::vector<double>* target);

// A single text stands for a list of one.
std::string type_of(const std::vector<std::string>*);
Status read_value(const YAML::Node& node, std::vector<std::string>* target);
std::string write_value(const std::vector<std::string>* target);

std::string type_of(const NodeId*);
Status read_value(const YAML::Node& node, NodeId* target);
std::string write_value(const NodeId* target);

std::string type_of(const std::vector<NodeId>*);
Status read_value(const YAML::Node& node, std::vector<NodeId>* target);
std::string write_value(const std::vector<NodeId>* target);

std::string type_of(const Device*);
Status read_value(const YAML::Node& node, Device* target);
std::string write_value(const Device* target);

std::string type_of(const Ratio&);
Status read_value(const YAML::Node& node, const Ratio& ratio);
std::string write_value(const Ratio& ratio);

std::string type_of(const ByteCount&);
Status read_value(const YAML::Node& node, const ByteCount& count);
std::string write_value(const ByteCount& count);

std::string type_of(const Address&);
Status read_value(const YAML::Node& node, const Address& address);
std::string write_value(const Address& address);

std::string type_of(const NumberOrAny&);
Status read_value(const YAML::Node& node, const NumberOrAny& number);
std::string write_value(const NumberOrAny& number);

// The text of a plain or quoted scalar without control characters; an error that begins "expected
// `type`" for anything else.
StatusOr<std::string> scalar_text(const YAML::Node& node, const std::string& type);
// What stands there, for a message: "a list", "a section", "nothing", "'12x'".
std::string describe(const YAML::Node& node);

template <class T>
std::string type_of(const Choice<T>& choice) {
  std::string names;
  for (const auto& [name, value] : choice.names) names += (names.empty() ? "" : ", ") + name;
  return "one of " + names;
}

template <class T>
Status read_value(const YAML::Node& node, const Choice<T>& choice) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, scalar_text(node, type_of(choice)));
  for (const auto& [name, value] : choice.names) {
    if (text != name) continue;
    *choice.target = value;
    return ok_status();
  }
  return invalid_argument("expected {}, got {}", type_of(choice), describe(node));
}

template <class T>
std::string write_value(const Choice<T>& choice) {
  for (const auto& [name, value] : choice.names) {
    if (*choice.target == value) return name;
  }
  TESSERA_CHECK(false && "a choice without a name");
  return {};
}

}  // namespace tessera::config
