// Invocation: from the name and the words that the program was called with to the arguments of `daybook`.

enum Invocation {
    /// `words`: the program's name, then its arguments.
    static func arguments(_ words: [String]) -> [String] {
        let rest = Array(words.dropFirst())
        let program = words.first?.split(separator: "/").last.map(String.init) ?? ""
        switch program {
        case "mkfs.daybook": return ["mkfs"] + rest
        case "fsck.daybook": return ["fsck"] + fsckArguments(rest)
        case "mount.daybook", "mount.fuse.daybook": return mountHelperArguments(rest)
        default: return rest.first == "fsck" ? ["fsck"] + fsckArguments(Array(rest.dropFirst())) : rest
        }
    }

    /// fsck(8) passes `-C` with or without a descriptor's number behind it, which is more than the parser can read: `-C` becomes
    /// `--progress`, `-C5` becomes `--progress=5`, also among other letters (`-fC0`).
    static func fsckArguments(_ arguments: [String]) -> [String] {
        var result: [String] = []
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            if argument == "--" { return result + [argument] + rest }
            guard argument.hasPrefix("-"), !argument.hasPrefix("--"), let letter = argument.firstIndex(of: "C") else {
                result.append(argument)
                continue
            }
            let before = argument[..<letter]
            let after = argument[argument.index(after: letter)...]
            if before.count > 1 { result.append(String(before)) }
            let digits = after.prefix { $0.isASCII && $0.isNumber }
            result.append("--progress=" + (digits.isEmpty ? "1" : digits))
            let letters = after.dropFirst(digits.count)
            if !letters.isEmpty { result.append("-" + letters) }
        }
        return result
    }
}
