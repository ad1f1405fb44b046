// KernelSetting: values under /sys that belong to one mount.

import Glibc

/// Writes a setting under /sys, if the kernel and our rights let us.
func tell(_ path: String, _ value: String) {
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return }
    defer { close(descriptor) }
    _ = write(descriptor, value, value.utf8.count)
}
