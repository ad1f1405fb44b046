// Membership: what a request does not say of who sends it: the groups beyond one, and whether root's right to keep sgid holds.

import Device
import Format
import Volume

/// Whether sgid may stay on a file of `group` that the caller changes. Looked up in /proc, which is slow: asked only about files
/// with sgid whose group may not execute them.
func keepsSetGroup(_ caller: Caller, _ group: UInt32) -> Bool {
    if caller.gid == group { return true }
    // A pid of zero lies outside of our namespace.
    guard caller.pid != 0, let status = ProcessFiles.contents("/proc/\(caller.pid)/status") else { return caller.uid == 0 }
    return keepsSetGroup(status: status, group)
}

/// From the text of /proc/PID/status.
func keepsSetGroup(status: [UInt8], _ group: UInt32) -> Bool {
    let mayKeepAny: UInt64 = 1 << 4  // CAP_FSETID
    for line in status.split(separator: 0x0a) {
        let words = String(decoding: line, as: UTF8.self).split { $0 == " " || $0 == "\t" }
        switch words.first {
        case "Groups:": if words.dropFirst().contains(where: { UInt32($0) == group }) { return true }
        case "CapEff:": if let held = words.dropFirst().first, (UInt64(held, radix: 16) ?? 0) & mayKeepAny != 0 { return true }
        default: break
        }
    }
    return false
}
