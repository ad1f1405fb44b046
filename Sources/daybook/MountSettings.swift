// MountSettings: the options of a mount, from text. Everything after -o comes through here, whether a person wrote it or
// mount(8) put it together from /etc/fstab; what is not known is refused, never ignored in silence.

import Format
import Glibc
import Volume

struct UsageError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

struct MountSettings {
    static let minimumCache = 16 << 20
    static let maximumCache = 1 << 40

    var volume = OpenOptions()
    var readOnly = false
    var point: Point?
    var writeback = false
    var latency: Bool?
    var threads = 2
    var allowOther: Bool
    /// Flags of mount(2), by name, each at most once.
    private var kernelFlags: [String: Bool] = [:]

    /// `lists`: what followed each -o. `sloppy`: unknown options are ignored, as mount(8) -s asks.
    init(_ lists: [String], isRoot: Bool, sloppy: Bool = false) throws(UsageError) {
        // A filesystem of the kernel's is open to all users; for others than root fusermount3 has a say.
        allowOther = isRoot
        if isRoot { kernelFlags = ["suid": true, "dev": true] }
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
        case "relatime", "atime":
            volume.accessTimes = .relative
            kernelFlags["atime"] = nil
        case "allow_other": allowOther = true
        case "writeback": writeback = true
        case "latency": latency = true
        case "user", "users", "owner", "group":
            // What mount(8) means by them, unless said otherwise later in the list.
            for name in ["suid", "dev", "exec"] { kernelFlags[name] = false }
        case "defaults", "default_permissions", "auto", "noauto", "nouser", "noowner", "nogroup", "_netdev", "nofail", "diratime",
            "nodiratime", "norelatime", "nostrictatime", "nolazytime", "silent", "loud":
            break
        case "remount": throw UsageError("remount is not supported: unmount and mount again")
        default: return flag.hasPrefix("x-") || flag.hasPrefix("X-")
        }
        return true
    }

    private mutating func take(_ name: Substring, value: Substring) throws(UsageError) -> Bool {
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
            guard let number = Int(value), (1...16).contains(number) else {
                throw UsageError("threads=\(value): a number from 1 to 16 is possible")
            }
            threads = number
        case "user", "comment": break
        default: return name.hasPrefix("x-") || name.hasPrefix("X-")
        }
        return true
    }

    private static func opposite(_ flag: String) -> String { flag == "sync" ? "async" : flag == "dirsync" ? "async" : "no" + flag }
}

// MARK: values

/// Bytes, with an optional suffix k, m, g or t.
func parseSize(_ text: some StringProtocol) -> Int? {
    let digits = text.prefix { $0.isASCII && $0.isNumber }
    guard let number = Int(digits) else { return nil }
    let shift: Int
    switch text.dropFirst(digits.count).lowercased() {
    case "": shift = 0
    case "k", "kib": shift = 10
    case "m", "mib": shift = 20
    case "g", "gib": shift = 30
    case "t", "tib": shift = 40
    default: return nil
    }
    let (product, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
    return overflow ? nil : product
}

/// A sequence number, or a time.
func parsePoint(_ text: String) -> Point? {
    if !text.isEmpty && text.allSatisfy({ $0.isASCII && $0.isNumber }) {
        guard let number = UInt64(text) else { return nil }
        return .sequence(SequenceNumber(number))
    }
    return parseTime(text).map { .time($0) }
}

/// `@seconds[.fraction]` since 1970; `YYYY-MM-DD[ HH:MM[:SS[.fraction]]]` in local time; the same with `T` and an offset
/// (`Z`, `+02:00`), which is RFC 3339. A fraction finer than nanoseconds is cut off.
func parseTime(_ text: String) -> Timestamp? {
    var scanner = Scanner(text)
    if scanner.skip("@") {
        let negative = scanner.skip("-")
        guard let seconds = scanner.number(1...12), let fraction = scanner.fraction(), scanner.isAtEnd else { return nil }
        return timestamp(seconds: negative ? -seconds : seconds, nanoseconds: negative ? -fraction : fraction)
    }
    var parts = tm()
    guard let year = scanner.number(4...4), scanner.skip("-"), let month = scanner.number(2...2), scanner.skip("-"),
        let day = scanner.number(2...2), (1...12).contains(month), (1...31).contains(day)
    else { return nil }
    (parts.tm_year, parts.tm_mon, parts.tm_mday) = (Int32(year - 1900), Int32(month - 1), Int32(day))
    parts.tm_isdst = -1
    guard !scanner.isAtEnd else { return local(&parts, day: day, fraction: 0) }

    guard scanner.skip(" ") || scanner.skip("T") || scanner.skip("t"), let hour = scanner.number(2...2), scanner.skip(":"),
        let minute = scanner.number(2...2), hour < 24, minute < 60
    else { return nil }
    (parts.tm_hour, parts.tm_min) = (Int32(hour), Int32(minute))
    var fraction = 0
    if scanner.skip(":") {
        guard let second = scanner.number(2...2), second <= 60, let parsed = scanner.fraction() else { return nil }
        parts.tm_sec = Int32(second)
        fraction = parsed
    }
    if scanner.isAtEnd { return local(&parts, day: day, fraction: fraction) }

    guard let offset = scanner.zone(), scanner.isAtEnd else { return nil }
    let seconds = timegm(&parts)
    // timegm turns a 31st of February into March.
    guard Int(parts.tm_mday) == day else { return nil }
    return timestamp(seconds: seconds - offset, nanoseconds: fraction)
}

private func local(_ parts: inout tm, day: Int, fraction: Int) -> Timestamp? {
    let seconds = mktime(&parts)
    guard Int(parts.tm_mday) == day else { return nil }
    return timestamp(seconds: seconds, nanoseconds: fraction)
}

private func timestamp(seconds: Int, nanoseconds: Int) -> Timestamp? {
    let (product, high) = Int64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, over) = product.addingReportingOverflow(Int64(nanoseconds))
    return high || over ? nil : Timestamp(nanoseconds: sum)
}

private struct Scanner {
    private var rest: Substring.UTF8View
    init(_ text: String) { rest = Substring(text).utf8 }
    var isAtEnd: Bool { rest.isEmpty }

    mutating func skip(_ character: Unicode.Scalar) -> Bool {
        guard rest.first == UInt8(ascii: character) else { return false }
        rest.removeFirst()
        return true
    }

    mutating func number(_ digits: ClosedRange<Int>) -> Int? {
        var value = 0
        var count = 0
        while count < digits.upperBound, let byte = rest.first, (48...57).contains(byte) {
            value = value * 10 + Int(byte) - 48
            count += 1
            rest.removeFirst()
        }
        return digits.contains(count) ? value : nil
    }

    /// Nanoseconds after a point, zero if there is none; nil for a point without digits.
    mutating func fraction() -> Int? {
        guard skip(".") else { return 0 }
        var value = 0
        var count = 0
        while let byte = rest.first, (48...57).contains(byte) {
            if count < 9 { value = value * 10 + Int(byte) - 48 }
            count += 1
            rest.removeFirst()
        }
        guard count > 0 else { return nil }
        while count < 9 {
            value *= 10
            count += 1
        }
        return value
    }

    /// Seconds east of Greenwich.
    mutating func zone() -> Int? {
        if skip("Z") || skip("z") { return 0 }
        let negative = skip("-")
        guard negative || skip("+"), let hours = number(2...2), hours < 24 else { return nil }
        _ = skip(":")
        guard let minutes = number(2...2), minutes < 60 else { return nil }
        let seconds = hours * 3600 + minutes * 60
        return negative ? -seconds : seconds
    }
}
