// MountSettings: the options of a mount, from text. Everything after -o comes through here, whether a person wrote it or
// mount(8) put it together from /etc/fstab; what is not known is refused, never ignored in silence.

import Format
import FuseAdapter
import Glibc
import Volume

struct MountSettings {
    static let minimumCache = 16 << 20
    static let maximumCache = 1 << 40

    var volume = OpenOptions()
    var readOnly = false
    var point: Point?
    var latency: Bool?
    var threads = 2
    var allowOther: Bool
    /// Of what is mounted already, the kernel's flags are to be others.
    private(set) var remount = false
    /// Options given that only a daemon heeds, and only when it is started.
    private(set) var daemonOptions: [String] = []
    /// Options known and without effect.
    private(set) var ignored: [String] = []
    /// Flags of mount(2), by name, each at most once.
    private var kernelFlags: [String: Bool] = [:]

    /// `lists`: what followed each -o. `sloppy`: unknown options are ignored, as mount(8) -s asks.
    init(_ lists: [String], isRoot: Bool, sloppy: Bool = false) throws(UsageError) {
        // A filesystem of the kernel's is open to all users; for others than root fusermount3 has a say.
        allowOther = isRoot
        if isRoot { kernelFlags = ["suid": true, "dev": true] }
        remount = lists.contains { $0.split(separator: ",").contains("remount") }
        for list in lists {
            for option in list.split(separator: ",") {
                guard try !take(option) else { continue }
                guard sloppy else { throw UsageError("unknown option '\(option)'") }
            }
        }
        if point != nil { readOnly = true }
        volume.mode = point.map { .at($0) } ?? (readOnly ? .readOnly : .readWrite)
    }

    /// For libfuse and the kernel.
    var kernelOptions: [String] {
        var options = [readOnly ? "ro" : "rw"]
        for (name, isOn) in kernelFlags.sorted(by: { $0.key < $1.key }) { options.append(isOn ? name : Self.opposite(name)) }
        if allowOther { options.append("allow_other") }
        return options
    }

    /// As mount(2) wants them, all of them: a flag that is not set is taken away.
    var remountFlags: UInt {
        var flags = UInt(MS_REMOUNT)
        if readOnly { flags |= UInt(MS_RDONLY) }
        for (name, flag) in [("suid", MS_NOSUID), ("dev", MS_NODEV), ("exec", MS_NOEXEC)] where kernelFlags[name] == false {
            flags |= UInt(flag)
        }
        for (name, flag) in [("sync", MS_SYNCHRONOUS), ("dirsync", MS_DIRSYNC)] where kernelFlags[name] == true {
            flags |= UInt(flag)
        }
        switch volume.accessTimes {
        case .never: flags |= UInt(MS_NOATIME)
        case .relative: flags |= UInt(MS_RELATIME)
        case .always: flags |= UInt(MS_STRICTATIME)
        }
        return flags
    }

    /// False for an option that is not known.
    private mutating func take(_ option: Substring) throws(UsageError) -> Bool {
        let name = option.prefix { $0 != "=" }
        guard name.count < option.count else { return try take(flag: option) }
        return try take(name, value: option.dropFirst(name.count + 1))
    }

    private mutating func take(flag: Substring) throws(UsageError) -> Bool {
        switch flag {
        case "ro": readOnly = true
        case "rw": readOnly = false
        case "suid", "dev", "exec", "sync", "dirsync": kernelFlags[String(flag)] = true
        case "nosuid", "nodev", "noexec": kernelFlags[String(flag.dropFirst(2))] = false
        case "async": kernelFlags["sync"] = false
        case "noatime":
            volume.accessTimes = .never
            kernelFlags["atime"] = false
        case "strictatime":
            volume.accessTimes = .always
            kernelFlags["atime"] = nil
        case "relatime", "atime":
            volume.accessTimes = .relative
            kernelFlags["atime"] = nil
        case "acl": volume.accessControlLists = true
        case "noacl": volume.accessControlLists = false
        case "allow_other": allowOther = true
        case "writeback": ignored.append("writeback")
        case "latency":
            latency = true
            daemonOptions.append("latency")
        case "user", "users", "owner", "group":
            // What mount(8) means by them, unless said otherwise later in the list.
            for name in ["suid", "dev", "exec"] { kernelFlags[name] = false }
        case "defaults", "default_permissions", "auto", "noauto", "nouser", "noowner", "nogroup", "_netdev", "nofail", "diratime",
            "nodiratime", "norelatime", "nostrictatime", "nolazytime", "silent", "loud":
            break
        case "remount": break
        default: return flag.hasPrefix("x-") || flag.hasPrefix("X-")
        }
        return true
    }

    private mutating func take(_ name: Substring, value: Substring) throws(UsageError) -> Bool {
        if ["at", "commit", "cache", "latency", "threads"].contains(name) { daemonOptions.append(String(name)) }
        switch name {
        case "at":
            guard let point = parsePoint(String(value)) else {
                throw UsageError("at=\(value): neither a sequence number nor a time (2026-01-31 [12:00[:00]], RFC 3339, @seconds)")
            }
            self.point = point
        case "commit":
            guard let seconds = Double(value), seconds >= 0.1, seconds <= 3600 else {
                throw UsageError("commit=\(value): seconds between 0.1 and 3600 are possible")
            }
            volume.commitSeconds = seconds
        case "cache":
            guard let size = parseSize(value), size >= Self.minimumCache, size <= Self.maximumCache else {
                throw UsageError("cache=\(value): a size between 16M and 1024G is possible")
            }
            volume.cacheBytes = size
        case "errors":
            guard value == "remount-ro" else { throw UsageError("errors=\(value): only remount-ro is possible") }
        case "latency":
            guard value == "0" || value == "1" else { throw UsageError("latency=\(value): 0 or 1") }
            latency = value == "1"
        case "threads":
            guard let number = Int(value), (1...MountOptions.maximumThreads).contains(number) else {
                throw UsageError("threads=\(value): a number from 1 to \(MountOptions.maximumThreads) is possible")
            }
            threads = number
        case "user", "comment": break
        // mount(8) repeats what the mount table shows.
        case "user_id" where remount, "group_id" where remount, "max_read" where remount: break
        default: return name.hasPrefix("x-") || name.hasPrefix("X-")
        }
        return true
    }

    private static func opposite(_ flag: String) -> String { flag == "sync" ? "async" : flag == "dirsync" ? "async" : "no" + flag }
}
