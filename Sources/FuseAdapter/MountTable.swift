// MountTable: what is mounted, read from /proc/self/mountinfo: the one source that needs no request to any filesystem.

import Glibc

public struct MountedFilesystem: Sendable {
    /// "major:minor", as in /sys/class/bdi.
    public let device: String
    public let mountpoint: String
    public let type: String
    public let source: String

    /// All mounts that this process sees, in the order in which they were made.
    public static func all() -> [MountedFilesystem] {
        guard let text = contents("/proc/self/mountinfo") else { return [] }
        return text.split(separator: UInt8(ascii: "\n")).compactMap(MountedFilesystem.init(line:))
    }

    /// What is on top at `mountpoint`, if it is a mount point.
    public static func at(_ mountpoint: String) -> MountedFilesystem? { all().last { $0.mountpoint == mountpoint } }

    // 36 35 98:0 /root /mnt rw,noatime master:1 - fuse.daybook /path/image rw
    init?(line: some Sequence<UInt8>) {
        let fields = Array(line).split(separator: UInt8(ascii: " "))
        guard let dash = fields.firstIndex(where: { $0.elementsEqual([UInt8(ascii: "-")]) }), dash >= 6, fields.count > dash + 2
        else { return nil }
        device = String(decoding: fields[2], as: UTF8.self)
        mountpoint = Self.unescape(fields[4])
        type = String(decoding: fields[dash + 1], as: UTF8.self)
        source = Self.unescape(fields[dash + 2])
    }

    /// The kernel writes space, tab, newline and backslash as three octal digits.
    static func unescape(_ field: ArraySlice<UInt8>) -> String {
        var result: [UInt8] = []
        var rest = field
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            if byte == UInt8(ascii: "\\"), digits.count == 3, digits.allSatisfy({ (48...55).contains($0) }) {
                result.append(UInt8(truncatingIfNeeded: digits.reduce(0) { $0 * 8 + Int($1) - 48 }))
                rest = rest.dropFirst(3)
            } else {
                result.append(byte)
            }
        }
        return String(decoding: result, as: UTF8.self)
    }
}

/// A small file's bytes.
func contents(_ path: String) -> [UInt8]? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var result: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16384)
    while true {
        let count = read(descriptor, &chunk, chunk.count)
        if count < 0 && errno == EINTR { continue }
        guard count > 0 else { return count == 0 ? result : nil }
        result += chunk.prefix(count)
    }
}

/// Writes a setting under /sys, if the kernel and our rights let us.
func tell(_ path: String, _ value: String) {
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return }
    defer { close(descriptor) }
    _ = write(descriptor, value, value.utf8.count)
}
