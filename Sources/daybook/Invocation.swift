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

    /// fsck(8) passes `-C` with or without a descriptor's number behind it, and getopt(3) lets a value follow its letter, which is more
    /// than the parser can read: `-C` becomes `--progress=1`, `-C5` becomes `--progress=5`, `-zFILE` becomes `--undo-file FILE`, also among
    /// other letters (`-fC0`).
    static func fsckArguments(_ arguments: [String]) -> [String] {
        var result: [String] = []
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            if argument == "--" { return result + [argument] + rest }
            guard argument.hasPrefix("-"), !argument.hasPrefix("--"), let letter = argument.firstIndex(where: { "Cz".contains($0) }) else {
                result.append(argument)
                continue
            }
            let before = argument[..<letter]
            let after = argument[argument.index(after: letter)...]
            if before.count > 1 { result.append(String(before)) }
            if argument[letter] == "z" {
                result.append("--undo-file")
                if !after.isEmpty { result.append(String(after.hasPrefix("=") ? after.dropFirst() : after)) } else if let value = rest.popFirst() {
                    result.append(value)
                }
                continue
            }
            let digits = after.prefix { $0.isASCII && $0.isNumber }
            result.append("--progress=" + (digits.isEmpty ? "1" : digits))
            // What follows may hold the next of them.
            let letters = after.dropFirst(digits.count)
            if !letters.isEmpty { rest = ["-" + letters] + rest }
        }
        return result
    }
}
