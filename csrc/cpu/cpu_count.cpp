// Reads the affinity mask and the CPU quota of every cgroup from this process's own up to the root; the tightest one
// counts.

#include "cpu_count.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>

namespace qformer::cpu {
namespace {

constexpr double kNoQuota = 1e9;

double read_quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return kNoQuota;
  return std::strtod(quota.c_str(), nullptr) / period;
}

double read_quota_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return kNoQuota;
  return quota / period;
}

template <class Read>
double tightest(const std::string& mount, std::string path, Read read) {
  double quota = read(mount);
  while (path.size() > 1) {
    quota = std::min(quota, read(mount + path));
    path.resize(path.rfind('/'));
  }
  return quota;
}

bool lists_cpu_controller(const std::string& controllers) {
  std::stringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

// Lines are "hierarchy:controllers:path"; version 2 has the hierarchy 0 and no controllers.
double cgroup_quota() {
  double quota = kNoQuota;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) quota = std::min(quota, tightest("/sys/fs/cgroup", path, read_quota_v2));
    if (lists_cpu_controller(controllers)) {
      quota = std::min(quota, tightest("/sys/fs/cgroup/cpu", path, read_quota_v1));
      quota = std::min(quota, tightest("/sys/fs/cgroup/cpu,cpuacct", path, read_quota_v1));
    }
  }
  return quota;
}

int32_t affinity_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

int32_t usable_cpus() {
  const double quota = std::ceil(cgroup_quota());
  const int32_t cpus = affinity_count();
  return quota < cpus ? std::max(1, static_cast<int32_t>(quota)) : cpus;
}

}  // namespace qformer::cpu
