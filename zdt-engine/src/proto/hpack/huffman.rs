//! The Huffman code of strings (RFC 7541 §5.2), four bits at a time.
//!
//! The table is made at compile time from the code: 256 states (the inner nodes of its tree), and for
//! each of them where 4 bits lead and which byte is complete by them. No code is shorter than 5 bits, so
//! it is one at most.
//!
//! Must not know: where the strings come from.

use super::Error;
use super::huffman_code::CODES;

/// Where four bits lead.
#[derive(Clone, Copy)]
struct Step {
    next: u8,
    byte: u8,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In the middle of a code.
    Inner,
    /// A byte is complete.
    Byte,
    /// The end of string, which must not be there.
    Refused,
}

const END_OF_STRING: u16 = 256;
const LEAF: u16 = 0x8000;
const NOTHING: u16 = u16::MAX;

/// For each inner node its two children: a node, or a symbol marked as leaf.
const TREE: [[u16; 2]; 256] = {
    let mut tree = [[NOTHING; 2]; 256];
    let mut nodes = 1;
    let mut symbol = 0;
    while symbol < CODES.len() {
        let (code, bits) = CODES[symbol];
        let mut node = 0;
        let mut bit = bits;
        while bit > 1 {
            bit -= 1;
            let side = ((code >> bit) & 1) as usize;
            if tree[node][side] == NOTHING {
                tree[node][side] = nodes;
                nodes += 1;
            }
            node = tree[node][side] as usize;
        }
        tree[node][(code & 1) as usize] = LEAF | symbol as u16;
        symbol += 1;
    }
    tree
};

static STEPS: [[Step; 16]; 256] = {
    let mut steps = [[Step { next: 0, byte: 0, kind: Kind::Inner }; 16]; 256];
    let mut state = 0;
    while state < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            let mut node = state as u16;
            let mut step = Step { next: 0, byte: 0, kind: Kind::Inner };
            let mut bit = 4;
            while bit > 0 {
                bit -= 1;
                let child = TREE[node as usize][(nibble >> bit) & 1];
                if child & LEAF == 0 {
                    node = child;
                } else if child & !LEAF == END_OF_STRING {
                    step.kind = Kind::Refused;
                    node = 0;
                    bit = 0;
                } else {
                    step.kind = Kind::Byte;
                    step.byte = (child & !LEAF) as u8;
                    node = 0;
                }
            }
            step.next = node as u8;
            steps[state][nibble] = step;
            nibble += 1;
        }
        state += 1;
    }
    steps
};

/// True for the states in which a string may end: up to 7 bits of ones behind the last code.
static MAY_END: [bool; 256] = {
    let mut may_end = [false; 256];
    let mut node = 0;
    let mut depth = 0;
    while depth < 8 {
        may_end[node as usize] = true;
        node = TREE[node as usize][1];
        depth += 1;
    }
    may_end
};

/// Appends the decoded string; at most 8/5 of the code's length.
pub(super) fn decode(code: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    out.reserve(code.len() * 8 / 5);
    let mut state = 0;
    for &byte in code {
        for nibble in [byte >> 4, byte & 15] {
            let step = STEPS[usize::from(state)][usize::from(nibble)];
            match step.kind {
                Kind::Inner => {}
                Kind::Byte => out.push(step.byte),
                Kind::Refused => return Err(Error::Huffman),
            }
            state = step.next;
        }
    }
    if MAY_END[usize::from(state)] { Ok(()) } else { Err(Error::Huffman) }
}
