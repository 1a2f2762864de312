//! `http2/6.9`: flow control.

use super::*;

const MAX: u32 = (1 << 31) - 1;

#[test]
fn http2_6_9_window_update() {
    check("http2/6.9", |spec| {
        spec.case(
            "1: sends a WINDOW_UPDATE frame with a flow control window increment of 0",
            |c| {
                c.send(WINDOW_UPDATE, 0, 0, &word(0));
                ConnectionError(PROTOCOL)
            },
        );
        spec.case(
            "2: sends a WINDOW_UPDATE frame with a flow control window increment of 0 on a stream",
            |c| {
                open(c, "GET");
                c.send(WINDOW_UPDATE, 0, 1, &word(0));
                StreamError(&[PROTOCOL])
            },
        );
        spec.case("3: sends a WINDOW_UPDATE frame with a length other than 4 octets", |c| {
            c.send(WINDOW_UPDATE, 0, 0, &[0, 0, 1]);
            ConnectionError(FRAME_SIZE)
        });
    });
}

#[test]
fn http2_6_9_1_the_flow_control_window() {
    check("http2/6.9.1", |spec| {
        spec.case(
            "1: sends SETTINGS frame to set the initial window size to 1 and sends HEADERS frame",
            |c| {
                set_and_wait(c, &[(INITIAL_WINDOW, 1)]);
                get(c, 1);
                OneByte
            },
        );
        spec.case(
            "2: sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1",
            |c| {
                c.send(WINDOW_UPDATE, 0, 0, &word(MAX));
                c.send(WINDOW_UPDATE, 0, 0, &word(MAX));
                ConnectionError(FLOW_CONTROL)
            },
        );
        spec.case(
            "3: sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a stream",
            |c| {
                open(c, "GET");
                c.send(WINDOW_UPDATE, 0, 1, &word(MAX));
                c.send(WINDOW_UPDATE, 0, 1, &word(MAX));
                Reset(FLOW_CONTROL)
            },
        );
    });
}

#[test]
fn http2_6_9_2_initial_window_size() {
    check("http2/6.9.2", |spec| {
        spec.case("1: changes SETTINGS_INITIAL_WINDOW_SIZE after sending HEADERS frame", |c| {
            set_and_wait(c, &[(INITIAL_WINDOW, 0)]);
            get(c, 1);
            set(c, &[(INITIAL_WINDOW, 1)]);
            OneByte
        });
        spec.case("2: sends a SETTINGS frame for window size to be negative", |c| {
            set_and_wait(c, &[(INITIAL_WINDOW, 3)]);
            get(c, 1);
            first(c, &[DATA]);
            set_and_wait(c, &[(INITIAL_WINDOW, 2)]);
            c.send(WINDOW_UPDATE, 0, 1, &word(2));
            OneByte
        });
        spec.case(
            "3: sends a SETTINGS_INITIAL_WINDOW_SIZE settings with an exceeded maximum window size value",
            |c| {
                set(c, &[(INITIAL_WINDOW, 1 << 31)]);
                ConnectionError(FLOW_CONTROL)
            },
        );
    });
}
