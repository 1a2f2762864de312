<?php
// The tests' application for PHP: like app.py.
$method = $_SERVER['REQUEST_METHOD'];
$target = $_SERVER['REQUEST_URI'];
$body = file_get_contents('php://input');
file_put_contents(getenv('NOTES') ?: $_SERVER['NOTES'], "$method $target\n", FILE_APPEND | LOCK_EX);
header('X-Process: ' . getmypid());
header('Content-Type: text/plain');
echo "$method $target $body\n";
