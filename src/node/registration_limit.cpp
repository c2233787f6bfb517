#include "tessera/node/registration_limit.h"

#include <arpa/inet.h>

#include "tessera/base/bytes.h"

namespace tessera::node {
namespace {

std::string without(std::string text, const std::string& part, const std::string& replacement) {
  const size_t at = text.find(part);
  return at == std::string::npos ? text : text.replace(at, part.size(), replacement);
}

}  // namespace

// "ipv4:10.0.0.1:4000", "ipv6:[fe80::1]:4000", its brackets escaped or not.
std::string RegistrationLimit::network_of(const std::string& address) {
  const std::string host = address.substr(0, address.rfind(':'));
  if (!host.starts_with("ipv6:")) return host;
  const std::string plain = without(without(host.substr(5), "%5B", "["), "%5D", "]");
  if (plain.size() < 2 || plain.front() != '[' || plain.back() != ']') return host;
  in6_addr parsed{};
  if (::inet_pton(AF_INET6, plain.substr(1, plain.find_first_of("%]") - 1).c_str(), &parsed) != 1) return host;
  if (IN6_IS_ADDR_V4MAPPED(&parsed)) return "ipv4:" + to_hex({reinterpret_cast<const char*>(parsed.s6_addr) + 12, 4});
  return "ipv6:" + to_hex({reinterpret_cast<const char*>(parsed.s6_addr), 8});
}

bool RegistrationLimit::admits(const std::string& address, TimeMs now) {
  if (per_minute_ == 0) return true;
  if (now - window_began_ >= kWindowMs) {
    window_began_ = now;
    admitted_.clear();
  }
  const std::string network = network_of(address);
  const auto found = admitted_.find(network);
  if (found == admitted_.end() && admitted_.size() >= kMaxAddresses) return false;
  uint32_t& admitted = found == admitted_.end() ? admitted_[network] : found->second;
  if (admitted >= per_minute_) return false;
  ++admitted;
  return true;
}

}  // namespace tessera::node
