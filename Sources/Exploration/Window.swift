// Window: what was written since the last flush, and every state that a power failure may make of it.
//
//   flush │ write a   write b   write a   write c │ flush
//         └─────── each block: any of its versions, the old one included ─┘
//
// The fault model (Docs/TESTING.md): each block written since the last flush holds any of the contents written to it, or what it
// held before, independently of the others; and it may be torn: some of its 512-byte sectors old, others new.
//
// (W1) While the product of versions is at most `exhaustive`, all of them are made; else those that lack one block, those that
//      have one block, every prefix of the writes, and a number drawn at random.
// (W2) Of each block, torn at every sector boundary either way round and at random, states are made with all the others there, and with
//      none; `coarse` windows have three tears a block.

import Device
import Format
import Memory

struct Window {
    private(set) var blocks: [UInt64] = []
    private var versions: [UInt64: [Page?]] = [:]
    private var order: [(block: UInt64, version: Int)] = []
    let base: DiskState

    init(_ base: DiskState) { self.base = base }

    var isEmpty: Bool { blocks.isEmpty }

    mutating func write(_ block: UInt64, _ page: Page?) {
        if versions[block] == nil {
            versions[block] = [base[block]]
            blocks.append(block)
        }
        versions[block]!.append(page)
        order.append((block, versions[block]!.count - 1))
    }

    /// Everything written is there.
    var flushed: DiskState {
        var state = base
        for block in blocks { state[block] = versions[block]!.last! }
        return state
    }

    struct Limits {
        var exhaustive = 256
        var samples = 64
        var torn = 4
        var coarse = false
    }

    /// Calls `body` with each state, some perhaps twice.
    func states(_ limits: Limits, _ random: inout SeededRandom, _ body: (DiskState) throws -> Void) rethrows {
        let counts = blocks.map { versions[$0]!.count }
        var product = 1
        for count in counts {
            product = product > limits.exhaustive ? product : product * count
        }
        func state(_ choice: [Int]) -> DiskState {
            var state = base
            for (index, block) in blocks.enumerated() where choice[index] > 0 { state[block] = versions[block]![choice[index]] }
            return state
        }
        let none = [Int](repeating: 0, count: blocks.count)
        let all = counts.map { $0 - 1 }
        if product <= limits.exhaustive {
            var choice = none
            while true {
                try body(state(choice))
                var index = 0
                while index < choice.count {
                    choice[index] += 1
                    if choice[index] < counts[index] { break }
                    choice[index] = 0
                    index += 1
                }
                if index == choice.count { break }
            }
        } else {
            try body(base)
            var prefix = none
            for (block, version) in order {
                prefix[blocks.firstIndex(of: block)!] = version
                try body(state(prefix))
            }
            for index in blocks.indices {
                var one = none
                one[index] = all[index]
                try body(state(one))
                var lacking = all
                lacking[index] = 0
                try body(state(lacking))
            }
            for _ in 0..<limits.samples {
                try body(state(counts.map { Int.random(in: 0..<$0, using: &random) }))
            }
        }
        try tornStates(limits, &random, whole: [state(none), state(all)], body)
    }

    private func tornStates(
        _ limits: Limits, _ random: inout SeededRandom, whole: [DiskState], _ body: (DiskState) throws -> Void
    ) rethrows {
        let buffer = AlignedBuffer(count: blockSize)
        let zeros = AlignedBuffer(count: blockSize)
        for block in blocks {
            let pages = versions[block]!
            let (old, new) = (pages[pages.count - 2], pages[pages.count - 1])
            var masks: [UInt8] = limits.coarse ? [0x01, 0x0f, 0xfe] : (1..<8).flatMap { [UInt8(truncatingIfNeeded: (1 << $0) - 1), ~UInt8(truncatingIfNeeded: (1 << $0) - 1)] }
            for _ in 0..<(limits.coarse ? 0 : limits.torn) { masks.append(UInt8.random(in: 1...254, using: &random)) }
            for mask in masks {
                buffer.bytes.copy(old?.memory.bytes ?? zeros.bytes)
                for sector in 0..<8 where mask & (1 << UInt8(sector)) != 0 {
                    buffer.bytes.slice(sector * 512, 512).copy((new?.memory.bytes ?? zeros.bytes).slice(sector * 512, 512))
                }
                let torn = Page.of(buffer.bytes)
                for var state in whole {
                    state[block] = torn
                    try body(state)
                }
            }
        }
        withExtendedLifetime((buffer, zeros)) {}
    }
}
