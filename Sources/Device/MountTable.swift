// MountTable: what is mounted, read from /proc/self/mountinfo: the one source that needs no request to any filesystem,
// and so cannot hang on one whose daemon is gone.

import Glibc

public struct MountedFilesystem: Sendable, Equatable {
    /// "major:minor", as in /sys/class/bdi.
    public let device: String
    /// What of the filesystem is mounted: `/`, or the directory that a bind mount shows.
    public let root: String
    public let mountpoint: String
    /// "rw", "relatime" and so on, as they are now.
    public let flags: [String]
    public let type: String
    public let source: String

    /// Of images, and of block devices.
    private static let daybookTypes = ["fuse.daybook", "fuseblk.daybook"]
    public var isDaybook: Bool { Self.daybookTypes.contains(type) }

    /// All mounts that this process sees, in the order in which they were made.
    public static func all() -> [MountedFilesystem] {
        guard let text = ProcessFiles.contents("/proc/self/mountinfo") else { return [] }
        return text.split(separator: UInt8(ascii: "\n")).compactMap { MountedFilesystem(line: $0) }
    }

    /// What is on top at `mountpoint`, if it is a mount point.
    public static func at(_ mountpoint: String) -> MountedFilesystem? { all().last { $0.mountpoint == mountpoint } }

    /// What holds the absolute, resolved `path`: the mount of the longest matching mount point, the last made of equals.
    public static func holding(_ path: String) -> MountedFilesystem? {
        all().filter { $0.holds(path) }.reduce(nil) { best, mount in
            guard let best, best.mountpoint.utf8.count > mount.mountpoint.utf8.count else { return mount }
            return best
        }
    }

    private func holds(_ path: String) -> Bool {
        mountpoint == "/" || path == mountpoint || path.hasPrefix(mountpoint + "/")
    }

    /// Where the absolute `path`, which this mount holds, lies within the mounted filesystem.
    public func inside(_ path: String) -> String {
        let rest = mountpoint == "/" ? path : String(path.dropFirst(mountpoint.count))
        let joined = (root == "/" ? "" : root) + (rest == "/" ? "" : rest)
        return joined.isEmpty ? "/" : joined
    }

    // 36 35 98:0 /root /mnt rw,noatime master:1 - fuse.daybook /path/image rw
    public init?(line: some Sequence<UInt8>) {
        let fields = Array(line).split(separator: UInt8(ascii: " "))
        guard let dash = fields.firstIndex(where: { $0.elementsEqual([UInt8(ascii: "-")]) }), dash >= 6, fields.count > dash + 2
        else { return nil }
        device = String(decoding: fields[2], as: UTF8.self)
        root = Self.unescape(fields[3])
        mountpoint = Self.unescape(fields[4])
        flags = fields[5].split(separator: UInt8(ascii: ",")).map { String(decoding: $0, as: UTF8.self) }
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

/// What is behind loop devices, as /sys tells it.
public enum LoopDevices {
    /// The loop device that shows the file at the resolved `path`.
    public static func over(_ path: String) -> String? {
        ProcessFiles.names("/sys/block").first { backingFile($0) == path }.map { "/dev/\($0)" }
    }

    /// The file that the device at the resolved `path` shows, if it is a loop device.
    public static func file(behind path: String) -> String? {
        path.hasPrefix("/dev/") ? backingFile(String(path.dropFirst(5))) : nil
    }

    private static func backingFile(_ device: String) -> String? {
        guard let bytes = ProcessFiles.contents("/sys/block/\(device)/loop/backing_file"), bytes.last == 10 else { return nil }
        return String(decoding: bytes.dropLast(), as: UTF8.self)
    }
}

/// What /proc tells of processes.
public enum ProcessFiles {
    /// A small file's bytes.
    public static func contents(_ path: String) -> [UInt8]? {
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

    /// Names in a directory, without `.` and `..`.
    public static func names(_ directory: String) -> [String] {
        guard let stream = opendir(directory) else { return [] }
        defer { closedir(stream) }
        var names: [String] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != "." && name != ".." { names.append(name) }
        }
        return names
    }

    /// Where a symbolic link leads.
    public static func link(_ path: String) -> String? {
        var target = [UInt8](repeating: 0, count: Int(PATH_MAX))
        let count = target.withUnsafeMutableBytes { bytes in
            readlink(path, bytes.bindMemory(to: CChar.self).baseAddress!, bytes.count)
        }
        return count >= 0 ? String(decoding: target.prefix(count), as: UTF8.self) : nil
    }

    /// The absolute path without symbolic links; nil, with `errno` set, when there is no such file.
    public static func resolved(_ path: String) -> String? {
        guard let resolved = realpath(path, nil) else { return nil }
        defer { free(resolved) }
        return String(cString: resolved)
    }
}
